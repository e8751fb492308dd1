"""Small training runs for tests, in this process: data, configuration, and an observer that remembers all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_sets import image_data

from data_prep.pack import pack
from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.state import TrainingState, initial_state
from dptrain.config.train import TrainConfig
from dptrain.parallel.communicator import Communicator
from dptrain.training.evaluate import Evaluation
from dptrain.training.loop import train
from dptrain.training.setup import Session, set_up
from dptrain.training.step import StepOutcome

# 101 training samples over 4 shards are 26, 25, 25 and 25: with a batch of 16, six full steps and one of 5.
TRAIN, TEST, SHARDS, CLASSES, SHAPE = 101, 37, 4, 5, (2, 6, 7)
BATCH_SIZE, STEPS_PER_EPOCH, EPOCHS = 16, 7, 2
LAST_STEP = STEPS_PER_EPOCH * EPOCHS


def packed(folder: Path, *, shards: int = SHARDS, **options: Any) -> Path:
    """A data set of random images in `folder`."""
    defaults = {"train": TRAIN, "test": TEST, "classes": CLASSES, "shape": SHAPE}
    pack(folder, image_data(**(defaults | options)), shards=shards)
    return folder


def settings(data: Path, run_dir: Path, **changes: Any) -> dict[str, Any]:
    """Values of a run of 14 steps that takes some 20 ms."""
    small = {
        "data": str(data),
        "run_dir": str(run_dir),
        "model_options": {"widths": [3]},
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "warmup_steps": 3,
        "threads": 1,
        "log_every": 1,
    }
    return small | changes


def configuration(data: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**settings(data, run_dir, **changes))


def flags(data: Path, run_dir: Path, **changes: Any) -> list[str]:
    """The same run for the command line: what follows `dptrain train`."""
    values = settings(data, run_dir, **changes)
    widths = values.pop("model_options").get("widths")
    words = [str(values.pop("data"))]
    if widths and values.get("model", "convnet") == "convnet":
        words += ["--model-options", f"widths = {widths}"]
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def session_and_state(config: TrainConfig) -> tuple[Session, TrainingState]:
    """A session of one process and the state before its first step."""
    session = set_up(config, Communicator())
    return session, initial_state(session.network, session.take_step.layouts, config.seed)


class Memory:
    """An observer that keeps what it was told; `interrupt_after` makes it fail after that step."""

    def __init__(self, interrupt_after: int = 0) -> None:
        self.interrupt_after = interrupt_after
        self.lines: list[str] = []
        self.resumed: Path | None = None
        self.steps: list[tuple[int, float, int, int, float]] = []
        self.evaluations: list[tuple[int, float, float, Evaluation]] = []
        self.state_sha256 = ""

    def say(self, line: str) -> None:
        self.lines.append(line)

    def started(self, session: Session, state: TrainingState, folder: RunFolder, resumed: Path | None) -> None:
        self.resumed = resumed

    def recovered(
        self, session: Session, state: TrainingState, folder: RunFolder, lost: Sequence[int], seconds: float
    ) -> None:
        raise AssertionError("a process alone cannot lose ranks")

    def stepped(self, state: TrainingState, outcome: StepOutcome, lr: float) -> None:
        self.steps.append((state.step, outcome.loss, outcome.correct, outcome.samples, lr))
        if state.step == self.interrupt_after:
            raise KeyboardInterrupt

    def evaluating(self, state: TrainingState) -> None:
        pass

    def evaluated(self, state: TrainingState, evaluation: Evaluation, lr: float, seconds: float) -> None:
        progress = state.progress
        loss, accuracy = progress.epoch_loss / progress.epoch_samples, progress.epoch_correct / progress.epoch_samples
        self.evaluations.append((state.step, loss, accuracy, evaluation))

    def finished(self, state: TrainingState, evaluation: Evaluation, folder: RunFolder) -> None:
        self.state_sha256 = state.digest()


def run(config: TrainConfig) -> tuple[dict[str, Any], Memory]:
    """Train in this process; the summary and what the observer was told."""
    memory = Memory()
    return train(config, Communicator(), memory), memory
