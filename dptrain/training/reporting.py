"""Measures a run and makes the events that the reporters of rank 0 receive."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.state import TrainingState
from dptrain.config.train import TrainConfig
from dptrain.parallel.communicator import Communicator
from dptrain.training import events
from dptrain.training.evaluate import Evaluation
from dptrain.training.events import Event, Reporter, RunFacts
from dptrain.training.session import Session
from dptrain.training.step import Seconds, StepOutcome


class Meter:
    """Samples and seconds since it was made."""

    def __init__(self) -> None:
        self.seconds = Seconds()
        self.samples = 0
        self.started = time.perf_counter()

    def add(self, outcome: StepOutcome) -> None:
        self.seconds += outcome.seconds
        self.samples += outcome.samples

    def figures(self, other_seconds: float = 0.0) -> dict[str, Any]:
        """images_per_second over wall time without `other_seconds` (None if no step was made), and seconds by kind."""
        elapsed = time.perf_counter() - self.started - other_seconds
        rate = round(self.samples / elapsed, 1) if self.samples else None
        return {"images_per_second": rate, "seconds": self.rounded()}

    def rounded(self) -> dict[str, float]:
        """The seconds by kind."""
        return {name: round(value, 4) for name, value in vars(self.seconds).items()}


class RunReport:
    """Makes the events of a run. Only rank 0 sends them to reporters; another rank may become rank 0 later."""

    def __init__(self, config: TrainConfig, reporters: Sequence[Reporter], connection: str) -> None:
        self.config, self.reporters, self.connection = config, reporters, connection
        self.rank = -1  # not known yet
        self._since_logged = self._since_epoch = Meter()
        self._evaluated_before = -1  # the step of an evaluation that the checkpoint held already

    def emit(self, event: Event) -> None:
        """Send an event to every reporter if this is rank 0."""
        for reporter in self.reporters if self.rank == 0 else ():
            reporter.handle(event)

    def note(self, text: str) -> None:
        self.emit(events.Note(text))

    def begin(self, session: Session, state: TrainingState, folder: RunFolder) -> RunFacts:
        """At the start or after a recovery, on all ranks; returns the facts of the run. `measure` comes next."""
        self._evaluated_before = -1 if state.progress.test_accuracy is None else state.step
        manifest, communicator = session.manifest, session.communicator
        return RunFacts(
            run_dir=str(folder.path),
            data=self.config.data,
            train_samples=manifest.samples("train"),
            test_samples=manifest.samples("test"),
            image_shape=manifest.image_shape,
            classes=len(manifest.classes),
            shards=manifest.shard_count,
            model=self.config.model,
            parameters=session.network.layout.size,
            epochs=self.config.epochs,
            steps_per_epoch=session.origin.steps_per_epoch,
            last_step=session.last_step,
            ranks=communicator.size,
            threads=session.pool.size,
            connection=self.connection,
            mpi=communicator.implementation,
            batch_size=self.config.batch_size,
            hosts=tuple(communicator.allgather(socket.gethostname())),
            early_stop=self.config.early_stop,
        )

    def measure(self) -> None:
        """Begin to measure the time of steps."""
        self._since_logged = self._since_epoch = Meter()

    def step_finished(self, state: TrainingState, outcome: StepOutcome, lr: float, epoch: int) -> None:
        for meter in {self._since_logged, self._since_epoch}:  # a single meter at first
            meter.add(outcome)
        figures, logged = self._since_logged.figures(), state.step % self.config.log_every == 0
        if logged:
            self._since_logged = Meter()
        accuracy = outcome.correct / outcome.samples
        self.emit(events.StepFinished(state.step, epoch, outcome.loss, accuracy, lr, **figures, logged=logged))

    def rank_seconds(self, communicator: Communicator) -> list[dict[str, float]]:
        """By rank, the seconds of its steps since the epoch began. All ranks must call this."""
        return communicator.allgather(self._since_epoch.rounded())

    def evaluation_finished(
        self,
        state: TrainingState,
        evaluation: Evaluation,
        validation: Evaluation | None,
        lr: float,
        epoch: int,
        seconds: float,
        rank_seconds: list[dict[str, float]],
    ) -> None:
        progress = state.progress
        event = events.EvaluationFinished(
            step=state.step,
            epoch=epoch,
            loss=progress.epoch_loss / progress.epoch_samples,
            accuracy=progress.epoch_correct / progress.epoch_samples,
            test_loss=evaluation.loss,
            test_accuracy=evaluation.accuracy,
            validation_loss=validation.loss if validation else None,
            validation_accuracy=validation.accuracy if validation else None,
            lr=lr,
            **self._since_epoch.figures(seconds),
            rank_seconds=rank_seconds,
            evaluation_seconds=round(seconds, 4),
            params_sha256=state.params_sha256,
            repeated=state.step == self._evaluated_before,
            predictions=evaluation.predictions,
            validation_predictions=validation.predictions if validation else None,
        )
        self.emit(event)
        self._since_logged = self._since_epoch = Meter()
