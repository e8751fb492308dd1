"""Loss and accuracy on the test split, with or without test-time augmentation. Each rank computes its shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, vector_layouts
from dptrain.data.batches import Normalisation
from dptrain.data.shard import Samples
from dptrain.data.transforms import views
from dptrain.health.interruption import NEVER, AskedToEndError, Interruption
from dptrain.health.recorder import NO_RECORDER, Recorder
from dptrain.nn.check import CheckedRunner
from dptrain.nn.layer import PLAIN, Runner, is_users
from dptrain.nn.loss import softmax, softmax_cross_entropy
from dptrain.nn.network import Network, Prepared, quiet
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import Result, ShardPool, ShardWork, shared_zeros
from dptrain.training.predictions import Predictions, by_index


@dataclass(frozen=True)
class Evaluation:
    """The mean loss of a split, and for each class its samples and the number classified correctly.

    It has the predictions of all samples if they were asked for.
    """

    loss: float
    class_samples: tuple[int, ...]
    class_correct: tuple[int, ...]
    predictions: Predictions | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def samples(self) -> int:
        return sum(self.class_samples)

    @property
    def correct(self) -> int:
        return sum(self.class_correct)

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples


BLOCKS = 16  # blocks of a shard per round; after each round the ranks exchange signals


class Figures(NamedTuple):
    """Of some samples: the loss of each block; by class (K,) the samples and the correct ones; the predictions."""

    losses: list[float]
    samples: NDArray[np.int64]
    correct: NDArray[np.int64]
    predictions: Predictions | None


class NetworkWork(ShardWork[Result]):
    """A task that needs the network's parameters (P,) and buffers (B,); forked workers share the memory of both."""

    trains = True  # whether it computes gradients

    def __init__(self, network: Network, recorder: Recorder = NO_RECORDER) -> None:
        self.network, self.recorder = network, recorder
        layouts = vector_layouts(network, ())
        self.vectors = {name: shared_zeros(layout.size) for name, layout in layouts.items()}
        self._workspace = Workspace()  # all shards only read it
        self._checks = any(map(is_users, network.layers))
        self._names = network.fused_names(network.graph if self.trains else network.evaluation_graph)

    def load(self, vectors: Mapping[str, Array]) -> None:
        """Compute with these parameters and buffers from now on."""
        for name, shared in self.vectors.items():
            np.copyto(shared, vectors[name])

    def runner(self, runner: Runner = PLAIN) -> Runner:
        """`runner`, with a check of each pass if the network has layers of a user, and recorded in a timeline."""
        checked = CheckedRunner(self.network, runner) if self._checks else runner
        return self.recorder.runner(checked, self._names)

    @quiet
    def prepare(self, *arguments: Any) -> Any:
        """The prepared network, then the arguments."""
        make = self.network.prepare if self.trains else self.network.prepare_evaluation
        return make(self.vectors[PARAMETERS], self.vectors[BUFFERS], self._workspace), *arguments


class EvaluationWork(NetworkWork[Figures]):
    """The figures of some rows of each shard; their predictions, and probabilities of all classes, if a call asks.

    `longest` is the number of samples in the largest shard of all ranks.
    """

    trains = False

    def __init__(
        self,
        network: Network,
        shards: Mapping[int, Samples],
        normalise: Normalisation,
        longest: int,
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        super().__init__(network, recorder)
        self.shards, self.normalise, self.longest = shards, normalise, longest

    @quiet
    def compute(self, shard: int, prepared: tuple[Prepared, slice, str, bool, bool], workspace: Workspace) -> Figures:
        network, rows, tta, wanted, all_classes = prepared
        images, labels = self.shards[shard].images[rows], self.shards[shard].labels[rows]
        losses: list[float] = []
        runner = self.runner()
        found = np.zeros(len(labels), np.int64)
        confidence = np.zeros(len(labels) if wanted else 0, np.float32)
        probabilities = np.zeros((len(confidence), self.network.classes if all_classes else 0), np.float32)
        for start in range(0, len(labels), self.network.block):
            block = slice(start, start + self.network.block)
            logits = self._logits(network, images[block], tta, workspace, runner)
            sample_losses, _ = softmax_cross_entropy(logits, labels[block], workspace)
            losses.append(float(sample_losses.sum(dtype=np.float64)))
            found[block] = logits.argmax(axis=1)
            if wanted:
                shares = softmax(logits, workspace)
                confidence[block] = np.take_along_axis(shares, found[block][:, None], axis=1)[:, 0]
                if all_classes:
                    probabilities[block] = shares
        samples, correct = (
            np.bincount(some, minlength=self.network.classes) for some in (labels, labels[found == labels])
        )
        index = self.shards[shard].index[rows]
        predictions = Predictions(index, labels, found, confidence, probabilities) if wanted else None
        return Figures(losses, samples, correct, predictions)

    def _logits(
        self, network: Prepared, images: NDArray[np.uint8], tta: str, workspace: Workspace, runner: Runner
    ) -> Array:
        """The mean logits (N, K) over all views of the images, added in the order of the views."""
        mean: Array | None = None
        for weight, view in views(images, tta):
            logits = self.network.predict(network, self.normalise(view, workspace), workspace, runner)
            if weight == 1:
                return logits
            logits *= weight  # a power of two, so this is exact
            if mean is None:
                mean = workspace.array("evaluation", "mean logits", logits.shape)
                np.copyto(mean, logits)
            else:
                mean += logits
        assert mean is not None
        return mean


def evaluate(
    work: EvaluationWork,
    vectors: Mapping[str, Array],
    pool: ShardPool,
    communicator: Communicator,
    interruption: Interruption = NEVER,
    tta: str = "none",
    predictions: bool = False,
    probabilities: bool = False,
) -> Evaluation:
    """The evaluation of all ranks' shards, the same on every rank; AskedToEndError on all after a signal at any.

    `vectors` are those of a state; the pool must have been made with this work. Losses are summed with exact rounding
    (math.fsum), so the result does not depend on the number of ranks. `tta` is the test-time augmentation, see
    `dptrain.data.transforms.views`. With `predictions` the evaluation has those of all samples, and with
    `probabilities` they have the probabilities of all classes.
    """
    communicator.activity.enter("evaluating")
    work.load(vectors)
    figures: list[Figures] = []
    size = BLOCKS * work.network.block
    for start in range(0, work.longest, size):
        figures += pool.map(work, work.shards, slice(start, start + size), tta, predictions, probabilities)
        for signal_name in communicator.allgather(interruption.signal_name):
            if signal_name is not None:
                raise AskedToEndError(signal_name)
    everyone = [part for parts in communicator.allgather(figures) for part in parts]
    samples = np.sum([part.samples for part in everyone], axis=0)
    correct = np.sum([part.correct for part in everyone], axis=0)
    loss = math.fsum(loss for part in everyone for loss in part.losses) / samples.sum()
    found = by_index([part.predictions for part in everyone if part.predictions is not None]) if predictions else None
    return Evaluation(float(loss), tuple(samples.tolist()), tuple(correct.tolist()), predictions=found)
