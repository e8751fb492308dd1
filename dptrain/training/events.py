"""The events of training, which the reporters on rank 0 receive.

Events are named tuples: the definition of eight frozen dataclasses would take several milliseconds of every start.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from dptrain.training.predictions import Predictions


class RunFacts(NamedTuple):
    """Facts that are constant until ranks are lost. `connection` describes MPI in words, `mpi` is the library."""

    run_dir: str
    data: str
    train_samples: int
    test_samples: int
    image_shape: tuple[int, int, int]  # (C, H, W)
    classes: int
    shards: int
    model: str
    parameters: int
    epochs: int
    steps_per_epoch: int
    last_step: int
    ranks: int
    threads: int
    connection: str
    mpi: str
    batch_size: int = 0  # global
    hosts: tuple[str, ...] = ()  # the host of each rank
    early_stop: int = 0  # epochs, as configured


class Note(NamedTuple):
    """A line for the user."""

    text: str


class RunStarted(NamedTuple):
    """The first step comes next. `resumed_from` is the path of a checkpoint of `step`."""

    run: RunFacts
    step: int
    resumed_from: str | None


class RanksLost(NamedTuple):
    """Ranks have died and the others continue from `step`. For a new rank 0 this is the first event."""

    run: RunFacts
    step: int
    lost: list[int]
    recovery_seconds: float


class StepFinished(NamedTuple):
    """Loss and accuracy are of the global batch; rate and seconds are of rank 0, since the last `logged` step."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    lr: float
    images_per_second: float | None
    seconds: dict[str, float]
    logged: bool


class MetricLogged(NamedTuple):
    """A figure that a callback has logged."""

    step: int
    epoch: int
    name: str
    value: float


class CheckpointSaved(NamedTuple):
    """The checkpoint of `step` is on the disk. Reported with a step that comes later."""

    step: int


class CheckpointStarted(NamedTuple):
    """The checkpoint of `step` is being written: it will be on the disk, also if an error ends the run now."""

    step: int


class EvaluationStarted(NamedTuple):
    step: int
    epoch: int


class EvaluationFinished(NamedTuple):
    """Loss and accuracy are means over the samples of the epoch; rate and seconds are of its steps alone.

    `images_per_second` and `seconds` are those of rank 0, `rank_seconds` those of each rank.
    `images_per_second` is None if this process made no step. Without a validation split, its figures are None.
    `repeated`: an earlier process has reported it already. `predictions` are those of the test split and
    `validation_predictions` those of the validation split, or None.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float
    lr: float
    images_per_second: float | None
    seconds: dict[str, float]
    rank_seconds: list[dict[str, float]]
    evaluation_seconds: float
    params_sha256: str
    repeated: bool
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    predictions: Predictions | None = None
    validation_predictions: Predictions | None = None


class RunFinished(NamedTuple):
    """All steps are made and saved. Loss and accuracy with test-time augmentation are None unless `tta` asks for it.

    `predictions` are those of the last evaluation, None without --report. `best_accuracy` is that of the validation
    split, if there is one; then `validation_accuracy` is that of the last step.
    """

    step: int
    test_loss: float
    test_accuracy: float
    test_correct: int
    test_samples: int
    params_sha256: str
    run_dir: str
    last_checkpoint: str
    best_checkpoint: str | None
    best_accuracy: float | None
    best_step: int
    tta: str = "none"
    tta_loss: float | None = None
    tta_accuracy: float | None = None
    predictions: Predictions | None = None
    validation_accuracy: float | None = None


Event = (
    Note
    | RunStarted
    | RanksLost
    | StepFinished
    | MetricLogged
    | CheckpointStarted
    | CheckpointSaved
    | EvaluationStarted
    | EvaluationFinished
    | RunFinished
)


class Reporter(Protocol):
    """Handles the events of a run, on rank 0. An exception ends the run: nothing is lost without a message."""

    def handle(self, event: Event) -> None:
        """Handle an event."""

    def close(self) -> None:
        """Close files and views; also called after an error, and if there was no event."""
