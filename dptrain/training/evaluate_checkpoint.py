"""`dptrain eval`: a checkpoint on a data set, outside any run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from dptrain.blas import ensure_one_thread
from dptrain.config import TrainConfig, parse_toml
from dptrain.data.batches import Normalisation
from dptrain.data.format import read_manifest
from dptrain.data.shards import load_shards
from dptrain.errors import CheckpointError, UsageError
from dptrain.parallel.communicator import Communicator, together
from dptrain.parallel.processes import make_pool
from dptrain.parallel.threads import fair_threads
from dptrain.training.architecture import build_network, first_difference
from dptrain.training.checkpoint import Checkpoint
from dptrain.training.evaluate import Evaluation, EvaluationWork, evaluate
from dptrain.training.setup import place


def evaluate_checkpoint(
    checkpoint: Checkpoint, path: Path, data: Path, communicator: Communicator, *, model: str = "", threads: int = 0
) -> Evaluation:
    """Evaluate a checkpoint (read from `path`) on any data set of the image shape and classes it was trained for.

    `model` names the architecture where the checkpoint's own name for it does not do any more; `threads` 0 takes
    this rank's share of the cores. Every rank fails with a DptrainError or none does.
    """
    origin = checkpoint.origin
    threads = threads or fair_threads(communicator)
    with together(communicator):
        ensure_one_thread()
        manifest = read_manifest(data)
        for what, theirs, ours in (
            ("images", manifest.image_shape, origin.input_shape),
            ("classes", manifest.classes, origin.classes),
        ):
            if theirs != ours:
                raise CheckpointError(f"{path} was trained for {what} {ours}, {data} has {theirs}: not the same task")
        config = TrainConfig(**parse_toml(origin.config, str(path)))
        if ":" in config.model and not model:
            raise UsageError(
                f"{path} was trained with {config.model}, code that is not run unasked: add --model {config.model}"
            )
        network = build_network(
            model or config.model, config.model_options, manifest.image_shape, len(manifest.classes)
        )
        if tuple(network.description()) != origin.architecture:
            difference = first_difference(origin.architecture, network.description())
            raise CheckpointError(f"{path} is of another architecture: {difference}; name the right one by --model")
        own = place(manifest, data, communicator).shards_of(communicator.rank)
        shards = load_shards(data, manifest, own, threads, splits=("test",))
    longest = max(entry.samples for entry in manifest.splits["test"])
    work = EvaluationWork(network, shards.test, Normalisation(manifest), longest)
    with closing(make_pool(min(threads, len(own)), [work], communicator)) as pool:
        return evaluate(work, checkpoint.state.parameters, pool, communicator)
