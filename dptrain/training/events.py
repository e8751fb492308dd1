"""What the training loop tells, and whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.state import TrainingState
from dptrain.training.evaluate import Evaluation
from dptrain.training.setup import Session
from dptrain.training.step import StepOutcome


class Observer(Protocol):
    """Who is told of a run's course. Told on every rank; on ranks other than 0 it keeps silent."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def started(self, session: Session, state: TrainingState, folder: RunFolder, resumed: Path | None) -> None:
        """The first step comes next."""

    def recovered(
        self, session: Session, state: TrainingState, folder: RunFolder, lost: Sequence[int], seconds: float
    ) -> None:
        """Ranks have died, and the others go on without; this rank may be another one than before."""

    def stepped(self, state: TrainingState, outcome: StepOutcome, lr: float) -> None:
        """A step was made."""

    def evaluating(self, state: TrainingState) -> None:
        """An evaluation begins."""

    def evaluated(self, state: TrainingState, evaluation: Evaluation, lr: float, seconds: float) -> None:
        """An epoch, or the run, has ended and was evaluated."""

    def finished(self, state: TrainingState, evaluation: Evaluation, folder: RunFolder) -> None:
        """All steps are made and saved."""
