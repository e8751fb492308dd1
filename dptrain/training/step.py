"""One synchronized step: microbatches, gradients, one reduction, one update."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.state import TrainingState, vector_layouts
from dptrain.data.batches import ShardBatches
from dptrain.nn.finite import not_finite
from dptrain.nn.network import Network, Prepared, quiet
from dptrain.optim.sgd import SGD
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.parallel.pool import ShardPool, ShardWork
from dptrain.parallel.processes import shared_zeros
from dptrain.parallel.reduce.tree import TreeReduction
from dptrain.training.finite import examine_shards, first_of_all_shards, not_finite_error

LOSS, CORRECT, SAMPLES = range(3)  # ride behind the gradient through the reduction, and Requests behind them


class Requests(NamedTuple):
    """What one rank asks of all: to end, as a signal told it; to hear that it could not save; to save a checkpoint.

    They ride through the reduction as numbers of ranks, so all ranks know of them after the same step.
    """

    end: bool = False
    save_failed: bool = False
    checkpoint: bool = False


NOTHING_ASKED = Requests()
STATISTICS = 3 + len(NOTHING_ASKED)
REQUESTS = slice(3, STATISTICS)


@dataclass
class Seconds:
    """Where this rank's time went. `waiting` is for other ranks to finish their shards.

    Shards compute side by side: `data` is the mean of the shards' shares of the time they took together.
    """

    compute: float = 0.0
    data: float = 0.0
    waiting: float = 0.0
    reduction: float = 0.0

    def __iadd__(self, other: Seconds) -> Seconds:
        self.compute += other.compute
        self.data += other.data
        self.waiting += other.waiting
        self.reduction += other.reduction
        return self


@dataclass(frozen=True)
class StepOutcome:
    """Of the global batch, the same on every rank: mean loss, samples classified rightly, samples, requests of any."""

    loss: float
    correct: int
    samples: int
    seconds: Seconds
    requests: Requests = NOTHING_ASKED


class GradientWork(ShardWork[float]):
    """Fills each shard's vector with its gradient and statistics; the result is the share of time its batch took."""

    def __init__(self, network: Network, batches: dict[int, ShardBatches]) -> None:
        self.network, self.batches = network, batches
        self.parameters = shared_zeros(network.layout.size)
        self.buffers = shared_zeros(network.buffer_layout.size)
        self.vectors = {shard: shared_zeros(network.layout.size + STATISTICS) for shard in batches}
        self._workspace = Workspace()  # of what all shards of a step only read

    @quiet
    def prepare(self, epoch: int, step: int) -> tuple[Prepared, int, int]:
        return self.network.prepare(self.parameters, self.buffers, self._workspace), epoch, step

    @quiet
    def compute(self, shard: int, prepared: tuple[Prepared, int, int], workspace: Workspace) -> float:
        started = time.perf_counter()
        parameters, epoch, step = prepared
        batches = self.batches[shard]
        images, labels = batches.batch(epoch, step, workspace)
        loaded = time.perf_counter()
        gradient, sums = self.split(self.vectors[shard])
        draws = batches.draws(epoch, step)
        outcome = self.network.loss_and_grad(parameters, images, labels, gradient, workspace, draws=draws)
        sums[:] = outcome.loss_sum, outcome.correct, len(labels), *NOTHING_ASKED
        return (loaded - started) / (time.perf_counter() - started)

    def split(self, vector: Array) -> tuple[Array, Array]:
        """Views of a shard's or the summed vector: gradient (P,) and statistics."""
        size = self.network.layout.size
        return vector[:size], vector[size:]


class TrainingStep:
    """Makes steps on this rank's shards, together with all other ranks. The pool must know the work."""

    def __init__(
        self,
        work: GradientWork,
        optimizer: SGD,
        pool: ShardPool,
        reduction: TreeReduction,
        communicator: Communicator,
    ) -> None:
        self.work, self.optimizer = work, optimizer
        self.pool, self.reduction, self.communicator = pool, reduction, communicator
        self.layouts = vector_layouts(work.network, optimizer.slots)

    @quiet
    def __call__(
        self, state: TrainingState, epoch: int, step: int, lr: float, requests: Requests = NOTHING_ASKED
    ) -> StepOutcome:
        """Make step `step` of an epoch: `state` becomes the next one. All ranks learn of each one's requests.

        TrainingError, with the state unchanged, when the loss or the gradient is not finite: it names shard and layer.
        """
        clock = time.perf_counter
        self.communicator.whereabouts.enter("computing", state.step + 1)
        started = clock()
        np.copyto(self.work.parameters, state.parameters)
        shares = self.pool.map(self.work, self.work.batches, epoch, step)
        partial = self.reduction.local_sums(self.work.vectors)
        self.work.split(partial[0])[1][REQUESTS] = requests
        computed = clock()
        self.communicator.barrier()
        waited = clock()
        total = self.reduction.exchange(partial)
        self.communicator.confirm()
        reduced = clock()
        gradient, sums = self.work.split(total)
        if not_finite(total):  # judged once, after the reduction, by all ranks alike
            found = examine_shards(
                self.work.network, self.work.parameters, self.work.buffers, self.work.batches, epoch, step
            )
            where = first_of_all_shards(found, gradient, self.work.network.layout, self.communicator)
            raise known_to_all(self.communicator, not_finite_error(float(sums[LOSS]), where, state.step + 1, lr))
        samples = int(sums[SAMPLES])
        gradient /= samples
        self.optimizer.update(state.vectors, gradient, lr, state.step)
        state.progress.step += 1
        state.progress.samples_seen += samples
        data = (computed - started) * sum(shares) / len(shares)
        compute = computed - started - data + clock() - reduced
        seconds = Seconds(compute, data, waited - computed, reduced - waited)
        asked = Requests(*(bool(number) for number in sums[REQUESTS]))
        return StepOutcome(float(sums[LOSS]) / samples, int(sums[CORRECT]), samples, seconds, asked)
