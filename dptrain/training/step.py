"""One synchronized step: microbatches, gradients, one reduction, one update."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from dptrain.data.batches import ShardBatches
from dptrain.errors import TrainingError
from dptrain.nn.network import Network, Prepared, quiet
from dptrain.nn.workspace import Array, Workspace
from dptrain.optim import SGD
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.parallel.pool import ShardPool, ShardWork
from dptrain.parallel.processes import shared_zeros
from dptrain.parallel.reduction import TreeReduction
from dptrain.training.state import TrainingState

# What rides behind the gradient through the reduction. The last two count ranks; so all ranks know after the same
# step that one of them was asked to end, or could not write its checkpoint.
LOSS, CORRECT, SAMPLES, ASKED_TO_END, FAILED = range(5)
STATISTICS = 5


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
    """Of the global batch, the same on every rank: mean loss, samples classified rightly, samples.

    `asked_to_end` and `failed` are true if they were on any rank when the step began.
    """

    loss: float
    correct: int
    samples: int
    seconds: Seconds
    asked_to_end: bool = False
    failed: bool = False


class GradientWork(ShardWork[float]):
    """Fills each shard's vector with its gradient and statistics; the result is the share of time its batch took."""

    def __init__(self, network: Network, batches: dict[int, ShardBatches]) -> None:
        self.network, self.batches = network, batches
        self.parameters = shared_zeros(network.layout.size)
        self.vectors = {shard: shared_zeros(network.layout.size + STATISTICS) for shard in batches}
        self._workspace = Workspace()  # of what all shards of a step only read

    @quiet
    def prepare(self, epoch: int, step: int) -> tuple[Prepared, int, int]:
        return self.network.prepare(self.parameters, self._workspace), epoch, step

    @quiet
    def compute(self, shard: int, prepared: tuple[Prepared, int, int], workspace: Workspace) -> float:
        started = time.perf_counter()
        parameters, epoch, step = prepared
        images, labels = self.batches[shard].batch(epoch, step, workspace)
        loaded = time.perf_counter()
        gradient, sums = self.split(self.vectors[shard])
        outcome = self.network.loss_and_grad(parameters, images, labels, gradient, workspace)
        sums[:] = outcome.loss_sum, outcome.correct, len(labels), 0, 0
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

    @quiet
    def __call__(
        self,
        state: TrainingState,
        epoch: int,
        step: int,
        lr: float,
        *,
        asked_to_end: bool = False,
        failed: bool = False,
    ) -> StepOutcome:
        """Make step `step` of an epoch: `state` becomes the next one. All ranks learn of the two flags.

        TrainingError, with the state unchanged, when the loss or the gradient is not finite.
        """
        clock = time.perf_counter
        started = clock()
        np.copyto(self.work.parameters, state.parameters)
        shares = self.pool.map(self.work, self.work.batches, epoch, step)
        partial = self.reduction.local_sums(self.work.vectors)
        self.work.split(partial[0])[1][[ASKED_TO_END, FAILED]] = asked_to_end, failed
        computed = clock()
        self.communicator.barrier()
        waited = clock()
        total = self.reduction.exchange(partial)
        reduced = clock()
        gradient, sums = self.work.split(total)
        if not (np.isfinite(total.min()) and np.isfinite(total.max())):  # a NaN is both
            # Judged once, after the reduction, by all ranks alike.
            raise known_to_all(self.communicator, _not_finite(float(sums[LOSS]), state.step, lr))
        samples = int(sums[SAMPLES])
        gradient /= samples
        self.optimizer.update(state.parameters, state.momentum, gradient, lr)
        state.step += 1
        state.samples_seen += samples
        data = (computed - started) * sum(shares) / len(shares)
        compute = computed - started - data + clock() - reduced
        seconds = Seconds(compute, data, waited - computed, reduced - waited)
        return StepOutcome(
            float(sums[LOSS]) / samples,
            int(sums[CORRECT]),
            samples,
            seconds,
            asked_to_end=bool(sums[ASKED_TO_END]),
            failed=bool(sums[FAILED]),
        )


def _not_finite(loss: float, step: int, lr: float) -> TrainingError:
    what = "gradient is not finite" if np.isfinite(loss) else f"loss is {loss}"
    return TrainingError(
        f"step {step + 1}: the {what}, at learning rate {lr:.6g}; the parameters were not changed and earlier "
        "checkpoints are kept. Try a lower --lr or more --warmup-steps in another --run-dir, from the start or "
        "by --resume from a checkpoint of before it went wrong"
    )
