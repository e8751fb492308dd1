"""One synchronized step: microbatches, gradients, one reduction, one update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dptrain.arrays.memory import Workspace
from dptrain.checkpoint.state import BUFFERS, TrainingState, vector_layouts
from dptrain.data.batches import ShardBatches
from dptrain.nn.finite import not_finite
from dptrain.nn.layer import Layer, Runner
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy
from dptrain.nn.network import Network, Prepared, quiet
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.parallel.pool import ShardPool
from dptrain.parallel.reduce.reducer import Reducer
from dptrain.training.evaluate import NetworkWork
from dptrain.training.finite import examine_shards, first_of_all_shards, not_finite_error
from dptrain.training.update import Update

LOSS, CORRECT, SAMPLES, WEIGHTS = range(4)  # the sums that a step needs besides the gradient


class Requests(NamedTuple):
    """What one rank requests of all. They are summed with the gradients, so all ranks learn of them."""

    end: bool = False
    save_failed: bool = False
    checkpoint: bool = False


NO_REQUESTS = Requests()


@dataclass
class Seconds:
    """The time of this rank. `waiting` is spent in MPI's calls, `reduction` in additions and copies.

    Shards compute at the same time: `data` is the mean of the times that they took to load their batches.
    """

    compute: float = 0.0
    data: float = 0.0
    waiting: float = 0.0
    reduction: float = 0.0

    def __iadd__(self, other: Seconds) -> Seconds:
        for name, seconds in vars(other).items():
            setattr(self, name, getattr(self, name) + seconds)
        return self


@dataclass(frozen=True)
class StepOutcome:
    """Of the global batch: mean loss, correct samples, samples, requests of any rank; `seconds` are this rank's.

    With class weights, mean loss and gradient are sums over the sum of the samples' weights.
    """

    loss: float
    correct: int
    samples: int
    seconds: Seconds
    requests: Requests = NO_REQUESTS


class GradientReporter(Runner):
    """Reports the gradient of each stage when it is complete; everything from `start` on is reported.

    `starts` has the place of each stage's gradient, by name and in order.
    """

    def __init__(self, ready: Callable[[slice], None], starts: Mapping[str, int], end: int) -> None:
        self.ready, self.start = ready, end
        self._waiting, self._complete = list(starts.items()), set[str]()

    def complete(self, layer: Layer) -> None:
        self._complete.add(layer.name)
        while self._waiting and self._waiting[-1][0] in self._complete:
            end, (_, self.start) = self.start, self._waiting.pop()
            self.ready(slice(self.start, end))


class GradientWork(NetworkWork[float]):
    """Computes each shard's gradient, statistics and sums; the result is the share of time that its batch took."""

    def __init__(
        self,
        network: Network,
        batches: Mapping[int, ShardBatches],
        reducer: Reducer,
        loss: CrossEntropy = CROSS_ENTROPY,
        parts: int = 1,
    ) -> None:
        super().__init__(network)
        self.batches, self.reducer, self.loss, self.parts = batches, reducer, loss, parts
        self._starts: dict[str, int] = {}  # where the gradient of each stage begins
        for stage in network.stages:
            parameters = [part for name, part in network.layout.slices.items() if name.startswith(f"{stage.name}.")]
            if parameters:
                self._starts[stage.name] = min(part.start for part in parameters)

    @quiet
    def compute(self, shard: int, prepared: tuple[Prepared, int, int, tuple[str, ...]], workspace: Workspace) -> float:
        started = time.perf_counter()
        network, epoch, step, frozen = prepared
        batches, parts = self.batches[shard], self.reducer.parts[shard]
        images, labels = batches.batch(epoch, step, workspace)
        loaded = time.perf_counter()
        # The gradient of frozen parameters is cleared at the end, and that of parts is added up.
        starts = self._starts if not frozen and self.parts == 1 else {}
        reporter = GradientReporter(lambda part: self.reducer.ready(shard, part), starts, parts.gradient.size)
        outcome = self.network.loss_and_grad(
            network,
            images,
            labels,
            parts.gradient,
            workspace,
            statistics=parts.statistics,
            loss=self.loss,
            draws=batches.draws(epoch, step),
            runner=self.runner(reporter),
            frozen=frozen,
            parts=self.parts,
        )
        parts.sums[:] = outcome.loss_sum, outcome.correct, len(labels), self.loss.sample_weights(labels)
        for start, end in ((0, reporter.start), (parts.gradient.size, parts.vector.size)):
            if start < end:
                self.reducer.ready(shard, slice(start, end))
        return (loaded - started) / (time.perf_counter() - started)


class TrainingStep:
    """Makes steps on this rank's shards, together with all other ranks. The pool must know the work."""

    def __init__(self, work: GradientWork, update: Update, pool: ShardPool, communicator: Communicator) -> None:
        self.work, self.update, self.pool, self.communicator = work, update, pool, communicator
        update.optimizer.join(communicator)
        self.layouts = vector_layouts(work.network, update.optimizer.slots, averaged=update.average is not None)

    @quiet
    def __call__(
        self, state: TrainingState, epoch: int, step: int, lr: float, requests: Requests = NO_REQUESTS
    ) -> StepOutcome:
        """Make step `step` of an epoch: `state` becomes the next one.

        TrainingError, with the state unchanged, when the loss or the gradient is not finite: it names shard and layer.
        """
        clock, work = time.perf_counter, self.work
        self.communicator.activity.enter("computing", state.step + 1)
        started = clock()
        work.load(state.vectors)
        work.reducer.begin(requests)
        shares = self.pool.map(work, work.batches, epoch, step, self.update.optimizer.frozen(state.step))
        computed = clock()
        reduced = work.reducer.finish()
        finished, waiting = clock(), work.reducer.waited
        if not_finite(reduced.vector):  # on all ranks alike
            found = examine_shards(work.network, work.loss, work.vectors, work.batches, epoch, step, work.parts)
            where = first_of_all_shards(found, reduced.gradient, work.network.layout, self.communicator)
            loss = float(reduced.sums[LOSS])
            raise known_to_all(self.communicator, not_finite_error(loss, where, state.step + 1, lr))
        samples, weights = int(reduced.sums[SAMPLES]), float(reduced.sums[WEIGHTS])
        gradient = reduced.gradient
        gradient /= weights
        self.update.step(state.vectors, gradient, lr, state.step)
        if reduced.statistics.size:
            work.network.update_buffers(state.vectors[BUFFERS], reduced.statistics / samples)
        self.update.finish(state.vectors, state.step)
        state.progress.step += 1
        state.progress.samples_seen += samples
        data = (computed - started) * sum(shares) / len(shares)
        compute = computed - started - data + clock() - finished
        seconds = Seconds(compute, data, waiting, finished - computed - waiting)
        requested = Requests(*map(bool, reduced.requests))
        return StepOutcome(float(reduced.sums[LOSS]) / weights, int(reduced.sums[CORRECT]), samples, seconds, requested)
