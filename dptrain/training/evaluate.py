"""Loss and accuracy on the test split: each shard by the rank that holds it, every sample once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.blas import ensure_one_thread
from dptrain.config import TrainConfig, parse_toml
from dptrain.data.batches import Normalisation
from dptrain.data.format import Samples, read_manifest
from dptrain.data.shards import load_shards
from dptrain.errors import CheckpointError
from dptrain.nn.loss import softmax_cross_entropy
from dptrain.nn.network import Network
from dptrain.nn.workspace import Array, Workspace
from dptrain.parallel.communicator import Communicator, together
from dptrain.parallel.placement import Placement
from dptrain.parallel.threads import ShardPool, fair_threads
from dptrain.training.architecture import build_network
from dptrain.training.checkpoint import Checkpoint

BATCH = 32  # always the same, so that the figures do not depend on how the run was trained


@dataclass(frozen=True)
class Evaluation:
    """Over a whole split: mean loss, and for each class its samples and those classified rightly."""

    loss: float
    class_samples: tuple[int, ...]
    class_correct: tuple[int, ...]

    @property
    def samples(self) -> int:
        return sum(self.class_samples)

    @property
    def correct(self) -> int:
        return sum(self.class_correct)

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


def evaluate(
    network: Network,
    parameters: Array,
    shards: dict[int, Samples],
    normalise: Normalisation,
    pool: ShardPool,
    communicator: Communicator,
) -> Evaluation:
    """The evaluation of all ranks' shards, the same on every rank.

    Counts are integers and losses are added exactly rounded (math.fsum), so the result does not depend on
    the number of ranks.
    """
    own = pool.map(
        lambda shard, workspace: _evaluate_shard(network, parameters, shards[shard], normalise, workspace), shards
    )
    everyone = [part for parts in communicator.allgather(own) for part in parts]
    samples = np.sum([part[1] for part in everyone], axis=0)
    correct = np.sum([part[2] for part in everyone], axis=0)
    loss = math.fsum(part[0] for part in everyone) / samples.sum()
    return Evaluation(float(loss), tuple(samples.tolist()), tuple(correct.tolist()))


def evaluate_checkpoint(
    checkpoint: Checkpoint, path: Path, data: Path, threads: int, communicator: Communicator
) -> Evaluation:
    """Evaluate a checkpoint on any data set of the image shape and classes it was trained for."""
    origin = checkpoint.origin
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
        network = build_network(config.model, config.model_options, manifest.image_shape, len(manifest.classes))
        if tuple(network.description()) != origin.architecture:
            raise CheckpointError(
                f"{path}: --model {config.model} has changed since: was {' | '.join(origin.architecture)}"
            )
        threads = threads or fair_threads(communicator)
        own = Placement(manifest.shard_count, communicator.size).shards_of(communicator.rank)
        shards = load_shards(data, manifest, own, threads, splits=("test",))
    pool = ShardPool(threads)
    evaluation = evaluate(
        network, checkpoint.state.parameters, shards.test, Normalisation(manifest), pool, communicator
    )
    pool.close()
    return evaluation


def _evaluate_shard(
    network: Network, parameters: Array, samples: Samples, normalise: Normalisation, workspace: Workspace
) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """Sum of losses, and samples and right answers by class (K,)."""
    losses: list[float] = []
    right = np.zeros(len(samples), bool)
    for start in range(0, len(samples), BATCH):
        rows = slice(start, start + BATCH)
        logits = network.predict(parameters, normalise(samples.images[rows], workspace), workspace)
        labels = samples.labels[rows]
        sample_losses, _ = softmax_cross_entropy(logits, labels, workspace, need_gradient=False)
        losses.append(float(sample_losses.sum(dtype=np.float64)))
        right[rows] = logits.argmax(axis=0) == labels
    count = network.classes
    return (
        math.fsum(losses),
        np.bincount(samples.labels, minlength=count),
        np.bincount(samples.labels[right], minlength=count),
    )
