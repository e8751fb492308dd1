"""Small training runs for tests, in this process: data, configuration, and a reporter that keeps all events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_sets import image_data

from data_prep.pack import pack
from dptrain.checkpoint.state import TrainingState, initial_state
from dptrain.config.train import TrainConfig
from dptrain.parallel.communicator import Communicator
from dptrain.training.events import EvaluationFinished, Event, Note, RanksLost, RunFinished, RunStarted, StepFinished
from dptrain.training.loop import train
from dptrain.training.session import Session, set_up

# 101 training samples over 4 shards are 26, 25, 25 and 25: with a batch of 16, six full steps and one of 5.
TRAIN, TEST, SHARDS, CLASSES, SHAPE = 101, 37, 4, 5, (2, 6, 7)
BATCH_SIZE, STEPS_PER_EPOCH, EPOCHS = 16, 7, 2
LAST_STEP = STEPS_PER_EPOCH * EPOCHS


def packed(folder: Path, *, shards: int = SHARDS, **options: Any) -> Path:
    """A data set of random images in `folder`."""
    defaults: dict[str, Any] = {"train": TRAIN, "test": TEST, "classes": CLASSES, "shape": SHAPE}
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
        "report": False,
    }
    return small | changes


def configuration(data: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**settings(data, run_dir, **changes))


def flags(data: Path, run_dir: Path, **changes: Any) -> list[str]:
    """The same run for the command line: the arguments of `dptrain train`."""
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
    """A reporter that keeps what it received; `interrupt_after` makes it fail after that step."""

    def __init__(self, interrupt_after: int = 0) -> None:
        self.interrupt_after = interrupt_after
        self.lines: list[str] = []
        self.resumed: Path | None = None
        self.steps: list[tuple[int, float, float, float]] = []  # step, loss, accuracy, learning rate
        self.evaluations: list[tuple[int, float, float, float, float]] = []  # step, loss, accuracy, test loss, accuracy
        self.lost: list[list[int]] = []
        self.finished: RunFinished | None = None

    def handle(self, event: Event) -> None:
        match event:
            case Note(text):
                self.lines.append(text)
            case RunStarted(resumed_from=str(path)):
                self.resumed = Path(path)
            case RanksLost(lost=ranks):
                self.lost.append(ranks)
            case StepFinished():
                self.steps.append((event.step, event.loss, event.accuracy, event.lr))
                if event.step == self.interrupt_after:
                    raise KeyboardInterrupt
            case EvaluationFinished():
                figures = (event.loss, event.accuracy, event.test_loss, event.test_accuracy)
                self.evaluations.append((event.step, *figures))
            case RunFinished():
                self.finished = event

    def close(self) -> None:
        pass


def run(config: TrainConfig) -> tuple[dict[str, Any], Memory]:
    """Train in this process; the last event's values and what a reporter received."""
    memory = Memory()
    finished = train(config, Communicator(), [memory])
    assert finished is not None
    return finished._asdict(), memory


def finished(config: TrainConfig) -> RunFinished:
    """The last event of a run in this process; a finished run is resumed for it, and evaluated again."""
    _, memory = run(config)
    assert memory.finished is not None
    return memory.finished
