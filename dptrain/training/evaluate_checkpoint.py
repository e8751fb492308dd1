"""`dptrain eval`: evaluates a checkpoint on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.format import Checkpoint, Origin
from dptrain.checkpoint.state import PARAMETERS, evaluated, vector_layouts
from dptrain.data.manifest import Manifest
from dptrain.data.transforms import check_views
from dptrain.errors import CheckpointError, UsageError
from dptrain.optim.average import AVERAGED
from dptrain.parallel.communicator import Communicator, together
from dptrain.parallel.pool import make_pool
from dptrain.system.text import shown
from dptrain.training.architecture import Architecture
from dptrain.training.evaluate import Evaluation, EvaluationWork, evaluate
from dptrain.training.model_checks import agree_on_model, changed_files, model_change, try_model
from dptrain.training.rebuild import check_network, trained_configuration
from dptrain.training.resume import l2_kib_of
from dptrain.training.session import make_evaluation, open_task


@dataclass(frozen=True)
class CheckpointEvaluation(Evaluation):
    """Also the model files that differ from the checkpoint's (None if it has no hashes), and a warning or ""."""

    changed_model_files: list[str] | None
    warning: str


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    data: Path,
    communicator: Communicator,
    *,
    model: str | Architecture = "",
    threads: int = 0,
    tta: str = "none",
    portable: bool = False,
    predictions: bool = False,
    probabilities: bool = False,
    split: str = "test",
    note: Callable[[str], None] = lambda line: None,
) -> CheckpointEvaluation:
    """Evaluate a checkpoint (read from `path`) on any data set of the image shape and classes it was trained for.

    Its averages of parameters and buffers are evaluated, if it has them. Images are normalised with its mean and
    deviation. `model` replaces its architecture. `tta` is the test-time augmentation. `threads` 0 is this rank's share
    of the cores. `portable` requires OpenBLAS's Haswell kernels. `predictions` asks for the prediction for each sample,
    `probabilities` for the probabilities of all classes, too. `split` is one of the data set. Rank 0 passes lines for
    the user to `note`. Either all ranks fail with a DptrainError, or none.
    """
    origin = checkpoint.origin
    with together(communicator):
        trained = trained_configuration(origin, path, model)
    architecture = model if isinstance(model, Architecture) else None
    name = model.model if isinstance(model, Architecture) else model or trained.model
    config = replace(trained, data=str(data), model=name, threads=threads, portable=portable)

    check = partial(check_data_set, origin, path, data, tta, split)
    task = open_task(config, communicator, check, splits=(split,), architecture=architecture, l2_kib=l2_kib_of(origin))
    network, source, tests = task.network, task.architecture.source, getattr(task.shards, split)
    as_trained = replace(task.manifest, mean=origin.mean, std=origin.std) if origin.mean else task.manifest
    evaluation = make_evaluation(task, as_trained, split)
    with together(communicator):
        changed = (
            model_change(path, origin, trained.model, source, "", task.environment) if ":" in trained.model else ""
        )
        check_network(origin, network, path, f" ({changed})" if changed else "")
        averaged = AVERAGED[PARAMETERS] in checkpoint.layouts
        checkpoint = checkpoint.restricted(vector_layouts(network, (), averaged=averaged), path)
        vectors = evaluated(checkpoint.state.vectors)
        blocks = first_blocks(evaluation, network.block)
        output = try_model(task.architecture, network, blocks, config.seed, checkpoint.state.vectors)
    agree_on_model(source, output, task.environment, communicator)
    if communicator.rank == 0:
        for line in notes_of(origin, task.manifest, path, data, changed_kernels=trained.portable and not portable):
            note(line)
    change = model_change(path, origin, trained.model, source, output, task.environment)
    with closing(make_pool(min(task.threads, len(tests)), [evaluation], communicator)) as pool:
        found = evaluate(
            evaluation, vectors, pool, communicator, tta=tta, predictions=predictions, probabilities=probabilities
        )
    return CheckpointEvaluation(
        **vars(found),
        changed_model_files=changed_files(origin, trained.model, source),
        warning=f"{change}. These figures are not those of the trained network" if change else "",
    )


def first_blocks(evaluation: EvaluationWork, size: int) -> Iterator[tuple[Array, NDArray[np.int64]]]:
    """The first block of the rank's first and last shard, as the network gets it."""
    shards, rows = evaluation.shards, slice(size)
    for one in (shards[min(shards)], shards[max(shards)]):
        yield evaluation.normalise(one.images[rows], Workspace()), one.labels[rows]


def check_data_set(origin: Origin, path: Path, data: Path, tta: str, split: str, manifest: Manifest) -> None:
    """Refuse a data set that does not fit the checkpoint or the augmentation, or has not this split."""
    check_task(origin, manifest, path, data)
    check_views(tta, manifest.image_shape)
    check_split(split, manifest, data)


def check_task(origin: Origin, manifest: Manifest, path: Path, data: Path) -> None:
    """CheckpointError unless the data set has the image shape and the classes, in order, of the checkpoint."""
    for what, trained, found in (
        ("images", origin.input_shape, manifest.image_shape),
        ("classes in this order", origin.classes, manifest.classes),
    ):
        if trained != found:
            raise CheckpointError(
                f"not the same task: {shown(path)} was trained for {what}: {shown(trained, 300)}; {shown(data)} has "
                f"{shown(found, 300)}"
            )


def check_split(split: str, manifest: Manifest, data: Path) -> None:
    """UsageError for a split that the data set does not have."""
    if split not in manifest.splits:
        raise UsageError(f"--split {split}: {shown(data)} has the splits {', '.join(manifest.split_names)}")


def notes_of(origin: Origin, manifest: Manifest, path: Path, data: Path, *, changed_kernels: bool) -> list[str]:
    """Notes on what the user may not expect: how images are normalised, and other kernels than in a portable run."""
    notes = []
    if not origin.mean:
        notes.append(f"{shown(path)} has no mean and deviation: images are normalised with those of {shown(data)}")
    elif (origin.mean, origin.std) != (manifest.mean, manifest.std):
        notes.append(
            f"images are normalised with the mean and deviation of the checkpoint; those of {shown(data)} differ"
        )
    if changed_kernels:
        notes.append(
            f"{shown(path)} is of a run with --portable; without it here, the loss may differ in its last digits"
        )
    return notes
