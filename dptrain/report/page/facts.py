"""Everything that a page shows about a run, as plain values.

Facts that are not available are left out, and `missing` gives the reason: the run was killed, the data set was moved,
the checkpoint was removed, or the model is a user's, whose code is never executed unasked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import Checkpoint
from dptrain.checkpoint.state import PARAMETERS, evaluated
from dptrain.config.files import parse_toml
from dptrain.config.train import TrainConfig
from dptrain.data.manifest import Manifest, read_manifest
from dptrain.errors import CheckpointError, DataError, DptrainError, UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.report.page.history import History, read_history
from dptrain.report.page.pictures import Picture, filter_pictures, images_of_test_split, sample_picture
from dptrain.system import files
from dptrain.system.text import shown
from dptrain.training.architecture import Architecture
from dptrain.training.evaluate_checkpoint import evaluate_checkpoint
from dptrain.training.predictions import Predictions

MISTAKES, FILTERS = 24, 64  # the most that are shown

Value = TypeVar("Value")


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction, with the sample's number in its source."""

    index: int
    label: int
    predicted: int
    probability: float
    picture: Picture


@dataclass
class PageFacts:
    """The facts of the run in a folder. `missing` has a sentence for each field that is not available."""

    folder: Path
    history: History
    config: TrainConfig | None = None
    path: Path | None = None  # of the checkpoint
    checkpoint: Checkpoint | None = None
    manifest: Manifest | None = None
    predictions: Predictions | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    filters: list[Picture] = field(default_factory=list)
    filter_count: int = 0
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def checkpoint_step(self) -> int:
        return self.checkpoint.state.step if self.checkpoint else 0

    @property
    def last_step(self) -> int:
        """The step at which the run is complete; 0 if that is not known."""
        if self.config is None or self.checkpoint is None:
            return 0
        total = self.config.epochs * self.checkpoint.origin.steps_per_epoch
        return min(total, self.config.max_steps or total)

    @property
    def steps_per_epoch(self) -> int:
        """0 if it is not known."""
        return self.checkpoint.origin.steps_per_epoch if self.checkpoint else self.history.steps_per_epoch


@dataclass(frozen=True)
class PageOptions:
    """What the user gives for a page: a data set in place of the recorded one, the model, and the threads."""

    data: str = ""
    model: str | Architecture = ""
    threads: int = 0


DEFAULTS = PageOptions()


def summary_of(folder: Path) -> PageFacts:
    """The facts that need neither the data set nor an evaluation. DataError if there is no run in the folder."""
    facts = PageFacts(folder, read_history(folder / "metrics.jsonl"))
    facts.config = _try(facts, "config", lambda: _read_config(folder))
    found = _try(facts, "checkpoint", lambda: _newest(folder))
    facts.path, facts.checkpoint = found or (None, None)
    return facts


def facts_of(folder: Path, options: PageOptions, predictions: Predictions | None = None) -> PageFacts:
    """All facts. `predictions` are those of the newest checkpoint, which is evaluated if they are not given."""
    facts = summary_of(folder)
    checkpoint, config = facts.checkpoint, facts.config
    if checkpoint is None or config is None:
        for name in ("manifest", "predictions", "mistakes", "filters"):
            facts.missing[name] = facts.missing["checkpoint" if checkpoint is None else "config"]
        return facts
    data = Path(options.data or config.data)
    facts.manifest = _try(facts, "manifest", lambda: _manifest(data, checkpoint))
    facts.predictions = predictions or _try(facts, "predictions", lambda: _evaluated(facts, data, options))
    facts.mistakes = _try(facts, "mistakes", lambda: _mistakes(facts, data)) or []
    facts.filters = _try(facts, "filters", lambda: _filters(facts, checkpoint)) or []
    return facts


def _try(facts: PageFacts, name: str, get: Callable[[], Value]) -> Value | None:
    """The value, or None with the error in `missing`."""
    try:
        return get()
    except DptrainError as error:
        facts.missing[name] = shown(error)
        return None


def _read_config(folder: Path) -> TrainConfig:
    path = folder / "config.toml"
    try:
        text = files.read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shown(path)}: cannot be read: {reason}") from error
    return TrainConfig(**parse_toml(text, shown(path)))


def _newest(folder: Path) -> tuple[Path, Checkpoint]:
    found = RunFolder(folder).newest(lambda line: None)
    if found is None:
        raise CheckpointError("the run has no checkpoint")
    return found


def _manifest(data: Path, checkpoint: Checkpoint) -> Manifest:
    manifest = read_manifest(data)
    if manifest.sha256 != checkpoint.origin.manifest_sha256:
        raise DataError(f"{shown(data)}: another data set than that of the run; give the right one with --data")
    return manifest


def _evaluated(facts: PageFacts, data: Path, options: PageOptions) -> Predictions:
    """The predictions of the checkpoint for the test split of the run's data set."""
    assert facts.checkpoint is not None
    assert facts.path is not None
    assert facts.config is not None
    if facts.manifest is None:
        raise DataError(facts.missing["manifest"])
    evaluation = evaluate_checkpoint(
        facts.checkpoint,
        facts.path,
        data,
        Communicator(),
        model=options.model,
        threads=options.threads,
        portable=facts.config.portable,
        predictions=True,
    )
    if evaluation.warning:
        raise UsageError(evaluation.warning)
    assert evaluation.predictions is not None
    return evaluation.predictions


def _mistakes(facts: PageFacts, data: Path) -> list[Mistake]:
    if facts.predictions is None:
        raise DataError(facts.missing["predictions"])
    if facts.manifest is None:
        raise DataError(facts.missing["manifest"])
    chosen = facts.predictions.mistakes(MISTAKES)
    numbers = chosen.index.tolist()
    images = images_of_test_split(data, facts.manifest, numbers)
    rows = zip(numbers, chosen.labels.tolist(), chosen.predicted.tolist(), chosen.confidence.tolist(), strict=True)
    return [Mistake(*row, sample_picture(images[row[0]])) for row in rows if row[0] in images]


def _filters(facts: PageFacts, checkpoint: Checkpoint) -> list[Picture]:
    views = checkpoint.layouts[PARAMETERS].views(evaluated(checkpoint.state.vectors)[PARAMETERS])
    weight = next((view for view in views.values() if view.ndim == 4), None)
    if weight is None:
        raise CheckpointError("the network has no convolution")
    facts.filter_count = len(weight)
    return filter_pictures(weight, FILTERS)
