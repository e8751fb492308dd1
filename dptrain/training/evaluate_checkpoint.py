"""`dptrain eval`: a checkpoint on a data set, outside any run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from dptrain.checkpoint.format import Checkpoint, Origin
from dptrain.checkpoint.state import vector_layouts
from dptrain.config.files import parse_toml
from dptrain.config.train import TrainConfig
from dptrain.data.batches import Normalisation
from dptrain.data.loading import load_shards
from dptrain.data.manifest import Manifest, read_manifest
from dptrain.errors import CheckpointError, UsageError
from dptrain.parallel.communicator import Communicator, together
from dptrain.parallel.processes import make_pool
from dptrain.parallel.threads import fair_threads
from dptrain.system.text import shown
from dptrain.training.architecture import build_network, find_architecture
from dptrain.training.evaluate import Evaluation, EvaluationWork, evaluate
from dptrain.training.own_model import (
    agree_on_model,
    changed_code,
    check_prediction,
    computes_otherwise,
    kept_model,
    warning,
)
from dptrain.training.setup import check_splits, numeric_environment, place


@dataclass(frozen=True)
class CheckpointEvaluation(Evaluation):
    """And the files of a user's model that are not those it was trained with, None where that is not known."""

    changed_model_files: list[str] | None
    warning: str


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    data: Path,
    communicator: Communicator,
    *,
    model: str = "",
    threads: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> CheckpointEvaluation:
    """Evaluate a checkpoint (read from `path`) on any data set of the image shape and classes it was trained for.

    Images are normalised as in training: with the checkpoint's mean and deviation, whatever those of the data set are.
    `model` names the architecture where the checkpoint's own name for it does not do any more; `threads` 0 takes
    this rank's share of the cores; rank 0 gives `say` what the user should know. Every rank fails with a DptrainError
    or none does.
    """
    origin = checkpoint.origin
    threads = threads or fair_threads(communicator)
    with together(communicator):
        manifest = read_manifest(data)
        check_task(origin, manifest, path, data)
        config = TrainConfig(**parse_toml(origin.config, str(path)))
        environment = numeric_environment(config.reduction)
        if ":" in config.model and not model:
            named = kept_model(path, config.model, origin.model_files) or config.model
            raise UsageError(
                f"{shown(path)} was trained with {shown(config.model, 300)}. Code that a checkpoint names is not run "
                f"unasked: add --model {shown(named, 300)}"
            )
        architecture = find_architecture(model or config.model)
        network = build_network(architecture, config.model_options, manifest.image_shape, len(manifest.classes))
        here = replace(origin, architecture=tuple(network.description()), spec=network.spec())
        if difference := origin.difference(here):
            files = changed_code(origin, config.model, architecture.source) or []
            code = f"; its code was changed ({shown(', '.join(files), 300)})" if files and ":" in config.model else ""
            raise CheckpointError(
                f"{shown(path)} is of another architecture: {shown(difference, 500)}{code}; name the right "
                "one by --model"
            )
        checkpoint.check_vectors(vector_layouts(network, ()), path)
        own = place(manifest, data, communicator).shards_of(communicator.rank)
        shards = load_shards(data, manifest, own, threads, splits=("test",))
        as_trained = replace(manifest, mean=origin.mean, std=origin.std) if origin.mean else manifest
        normalise = Normalisation(as_trained)
        vectors = checkpoint.state.vectors
        output = check_prediction(architecture, network, vectors, shards.test, normalise, config.seed)
        changed = changed_code(origin, config.model, architecture.source)
    check_splits(manifest, shards, data, communicator, splits=("test",))
    agree_on_model(architecture.source, output, environment, communicator)
    if communicator.rank == 0 and (note := normalisation_note(origin, manifest, path, data)):
        say(note)
    otherwise = computes_otherwise(origin, output, environment)
    longest = max(entry.samples for entry in manifest.splits["test"])
    work = EvaluationWork(network, shards.test, normalise, longest)
    with closing(make_pool(min(threads, len(own)), [work], communicator)) as pool:
        evaluation = evaluate(work, vectors, pool, communicator)
    return CheckpointEvaluation(
        **vars(evaluation),
        changed_model_files=changed,
        warning=warning(path, config.model, origin.model_files, changed, otherwise),
    )


def check_task(origin: Origin, manifest: Manifest, path: Path, data: Path) -> None:
    """CheckpointError unless the data set has the image shape and the classes, in order, of the checkpoint."""
    theirs: object
    ours: object
    for what, theirs, ours in (
        ("images", manifest.image_shape, origin.input_shape),
        ("classes", manifest.classes, origin.classes),
    ):
        if theirs == ours:
            continue
        if what == "classes" and sorted(manifest.classes) == sorted(origin.classes):
            first = next(label for label, name in enumerate(origin.classes) if name != manifest.classes[label])
            raise CheckpointError(
                f"{shown(path)} has the classes of {shown(data)} in another order: label {first} is "
                f"{shown(origin.classes[first], 80)} there, {shown(manifest.classes[first], 80)} here; pack the data "
                "set again with its classes in the order of the checkpoint's"
            )
        raise CheckpointError(
            f"{shown(path)} was trained for {what} {shown(ours, 300)}, {shown(data)} has {shown(theirs, 300)}: not the "
            "same task"
        )


def normalisation_note(origin: Origin, manifest: Manifest, path: Path, data: Path) -> str:
    """A line that says with which mean and deviation images are normalised, where that is not plain; else ""."""
    if not origin.mean:
        return (
            f"{shown(path)} does not say its mean and deviation (an earlier dptrain wrote it): images are normalised "
            f"with those of {shown(data)}, which is right only if it was trained on the same images"
        )
    if (origin.mean, origin.std) == (manifest.mean, manifest.std):
        return ""
    return (
        f"images are normalised as in training, mean {_short(origin.mean)} and deviation {_short(origin.std)}; "
        f"{shown(data)} has mean {_short(manifest.mean)} and deviation {_short(manifest.std)}"
    )


def _short(numbers: Sequence[float]) -> str:
    """The first channels' numbers."""
    return " ".join(f"{number:.4g}" for number in numbers[:4]) + (" ..." if len(numbers) > 4 else "")
