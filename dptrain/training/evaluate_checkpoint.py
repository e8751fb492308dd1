"""`dptrain eval`: a checkpoint on a data set, outside any run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dptrain.config import TrainConfig, parse_toml
from dptrain.data.batches import Normalisation
from dptrain.data.format import read_manifest
from dptrain.data.shards import load_shards
from dptrain.errors import CheckpointError, UsageError
from dptrain.parallel.communicator import Communicator, together
from dptrain.parallel.processes import make_pool
from dptrain.parallel.threads import fair_threads
from dptrain.training.architecture import build_network, find_architecture, first_difference
from dptrain.training.checkpoint import Checkpoint
from dptrain.training.evaluate import Evaluation, EvaluationWork, evaluate
from dptrain.training.own_model import (
    agree_on_model,
    changed_code,
    check_prediction,
    computes_otherwise,
    kept_model,
    warning,
)
from dptrain.training.setup import numeric_environment, place


@dataclass(frozen=True)
class CheckpointEvaluation(Evaluation):
    """And the files of a user's model that are not those it was trained with, None where that is not known."""

    changed_model_files: list[str] | None
    warning: str


def evaluate_checkpoint(
    checkpoint: Checkpoint, path: Path, data: Path, communicator: Communicator, *, model: str = "", threads: int = 0
) -> CheckpointEvaluation:
    """Evaluate a checkpoint (read from `path`) on any data set of the image shape and classes it was trained for.

    `model` names the architecture where the checkpoint's own name for it does not do any more; `threads` 0 takes
    this rank's share of the cores. Every rank fails with a DptrainError or none does.
    """
    origin = checkpoint.origin
    threads = threads or fair_threads(communicator)
    with together(communicator):
        manifest = read_manifest(data)
        for what, theirs, ours in (
            ("images", manifest.image_shape, origin.input_shape),
            ("classes", manifest.classes, origin.classes),
        ):
            if theirs != ours:
                raise CheckpointError(f"{path} was trained for {what} {ours}, {data} has {theirs}: not the same task")
        config = TrainConfig(**parse_toml(origin.config, str(path)))
        environment = numeric_environment(config.reduction)
        if ":" in config.model and not model:
            named = kept_model(path, config.model) or config.model
            raise UsageError(
                f"{path} was trained with {config.model}. Code that a checkpoint names is not run unasked: add "
                f"--model {named}"
            )
        architecture = find_architecture(model or config.model)
        network = build_network(architecture, config.model_options, manifest.image_shape, len(manifest.classes))
        if tuple(network.description()) != origin.architecture:
            difference = first_difference(origin.architecture, network.description())
            raise CheckpointError(f"{path} is of another architecture: {difference}; name the right one by --model")
        own = place(manifest, data, communicator).shards_of(communicator.rank)
        shards = load_shards(data, manifest, own, threads, splits=("test",))
        normalise = Normalisation(manifest)
        output = check_prediction(
            architecture, network, checkpoint.state.parameters, shards.test, normalise, config.seed
        )
        changed = changed_code(origin, config.model, architecture.source)
    agree_on_model(architecture.source, output, environment, communicator)
    otherwise = computes_otherwise(origin, output, environment)
    longest = max(entry.samples for entry in manifest.splits["test"])
    work = EvaluationWork(network, shards.test, normalise, longest)
    with closing(make_pool(min(threads, len(own)), [work], communicator)) as pool:
        evaluation = evaluate(work, checkpoint.state.parameters, pool, communicator)
    return CheckpointEvaluation(
        **vars(evaluation), changed_model_files=changed, warning=warning(path, config.model, changed, otherwise)
    )
