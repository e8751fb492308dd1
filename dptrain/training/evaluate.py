"""Loss and accuracy on the test split: each shard by the rank that holds it, every sample once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dptrain.data.batches import Normalisation
from dptrain.data.format import Samples
from dptrain.nn.loss import softmax_cross_entropy
from dptrain.nn.network import Network, Prepared, quiet
from dptrain.nn.workspace import Array, Workspace
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import ShardPool, ShardWork
from dptrain.parallel.processes import shared_zeros


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


ShardFigures = tuple[float, NDArray[np.int64], NDArray[np.int64]]


class EvaluationWork(ShardWork[ShardFigures]):
    """For each shard the sum of its losses, and its samples and right answers by class (K,)."""

    def __init__(self, network: Network, shards: dict[int, Samples], normalise: Normalisation) -> None:
        self.network, self.shards, self.normalise = network, shards, normalise
        self.parameters = shared_zeros(network.layout.size)
        self._workspace = Workspace()  # of what all shards only read

    @quiet
    def prepare(self) -> Prepared:
        return self.network.prepare(self.parameters, self._workspace)

    @quiet
    def compute(self, shard: int, prepared: Prepared, workspace: Workspace) -> ShardFigures:
        samples = self.shards[shard]
        losses: list[float] = []
        right = np.zeros(len(samples), bool)
        for start in range(0, len(samples), self.network.block):
            rows = slice(start, start + self.network.block)
            logits = self.network.predict(prepared, self.normalise(samples.images[rows], workspace), workspace)
            labels = samples.labels[rows]
            sample_losses, _ = softmax_cross_entropy(logits, labels, workspace, need_gradient=False)
            losses.append(float(sample_losses.sum(dtype=np.float64)))
            right[rows] = logits.argmax(axis=1) == labels
        count = self.network.classes
        return (
            math.fsum(losses),
            np.bincount(samples.labels, minlength=count),
            np.bincount(samples.labels[right], minlength=count),
        )


def evaluate(work: EvaluationWork, parameters: Array, pool: ShardPool, communicator: Communicator) -> Evaluation:
    """The evaluation of all ranks' shards, the same on every rank, for parameters (P,). The pool must know the work.

    Counts are integers and losses are added exactly rounded (math.fsum), so the result does not depend on
    the number of ranks.
    """
    np.copyto(work.parameters, parameters)
    own = pool.map(work, work.shards)
    everyone = [part for parts in communicator.allgather(own) for part in parts]
    samples = np.sum([part[1] for part in everyone], axis=0)
    correct = np.sum([part[2] for part in everyone], axis=0)
    loss = math.fsum(part[0] for part in everyone) / samples.sum()
    return Evaluation(float(loss), tuple(samples.tolist()), tuple(correct.tolist()))
