"""One synchronized step: microbatches, gradients, one reduction, one update.

A synchronized layer needs two small reductions more: one in the forward pass, one in the backward pass.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dptrain.arrays.memory import Workspace
from dptrain.checkpoint.state import BUFFERS, TrainingState, vector_layouts
from dptrain.data.batches import ShardBatches
from dptrain.nn.finite import not_finite
from dptrain.nn.layer import Layer, Runner
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy
from dptrain.nn.network import Network, Prepared, quiet
from dptrain.nn.segments import Sums
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.parallel.pool import ShardPool, ShardWork
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
    finish: bool = False


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


Progress = float | Sums  # of a shard: the share of time that its batch took, or sums to be added over all shards


class GradientWork(NetworkWork[Progress]):
    """Computes each shard's gradient, statistics and sums.

    At a synchronized layer a shard pauses. It continues in the same process, by `continuation`: its microbatch and
    everything computed of it stay there, so such a network needs memory for all microbatches of a rank at once.
    """

    def __init__(
        self,
        network: Network,
        batches: Mapping[int, ShardBatches],
        reducer: Reducer,
        loss: CrossEntropy = CROSS_ENTROPY,
        parts: int = 1,
    ) -> None:
        super().__init__(network, reducer.communicator.recorder)
        self.batches, self.reducer, self.loss, self.parts = batches, reducer, loss, parts
        self.continuation = Continuation(self)
        self._workspaces: defaultdict[int, Workspace] = defaultdict(Workspace)  # by shard, if the network is paused
        self._computations: dict[int, Generator[Progress, Any, None]] = {}  # by shard
        self._seconds: dict[int, float] = {}  # by shard, without pauses
        self._starts: dict[str, int] = {}  # where the gradient of each stage begins
        for stage in network.stages:
            parameters = [part for name, part in network.layout.slices.items() if name.startswith(f"{stage.name}.")]
            if parameters:
                self._starts[stage.name] = min(part.start for part in parameters)

    @quiet
    def compute(
        self, shard: int, prepared: tuple[Prepared, int, int, tuple[str, ...]], workspace: Workspace
    ) -> Progress:
        self._seconds[shard] = 0.0
        if self.network.rounds():
            workspace = self._workspaces[shard]
        self._computations[shard] = self._computation(shard, prepared, workspace)
        return self.advance(shard)

    def advance(self, shard: int, totals: Sums | None = None) -> Progress:
        """Continue with the sums over all shards; after the end, the last result again."""
        started = time.perf_counter()
        result = self._computations[shard].send(totals)
        self._seconds[shard] += time.perf_counter() - started
        return result / self._seconds[shard] if isinstance(result, float) else result

    def _computation(
        self, shard: int, prepared: tuple[Prepared, int, int, tuple[str, ...]], workspace: Workspace
    ) -> Generator[Progress, Any, None]:
        """Yields sums, is sent those of all shards, and at the end yields the seconds that loading the batch took."""
        started = time.perf_counter()
        network, epoch, step, frozen = prepared
        batches, parts = self.batches[shard], self.reducer.parts[shard]
        with self.recorder.span("batch", "data"):
            images, labels = batches.batch(epoch, step, workspace)
        loaded = time.perf_counter()
        # The gradient of frozen parameters is cleared at the end, and that of parts is added up.
        starts = self._starts if not frozen and self.parts == 1 else {}
        reporter = GradientReporter(lambda part: self.reducer.ready(shard, part), starts, parts.gradient.size)
        given = (network, images, labels, parts.gradient, workspace)
        options: dict[str, Any] = {
            "statistics": parts.statistics,
            "loss": self.loss,
            "draws": batches.draws(epoch, step),
            "runner": self.runner(reporter),
            "frozen": frozen,
            "parts": self.parts,
        }
        if self.network.rounds():
            outcome = yield from self.network.in_rounds(*given, **options)
        else:
            outcome = self.network.loss_and_grad(*given, **options)
        parts.sums[:] = outcome.loss_sum, outcome.correct, len(labels), self.loss.sample_weights(labels)
        for start, end in ((0, reporter.start), (parts.gradient.size, parts.vector.size)):
            if start < end:
                self.reducer.ready(shard, slice(start, end))
        while True:
            yield loaded - started


class Continuation(ShardWork[Progress]):
    """Continues the paused shards of a `GradientWork`."""

    def __init__(self, work: GradientWork) -> None:
        self.work = work

    @quiet
    def compute(self, shard: int, prepared: tuple[Sums | None], workspace: Workspace) -> Progress:
        return self.work.advance(shard, *prepared)


def add_sums(first: Sums | None, second: Sums | None) -> Sums | None:
    """By node; None has no samples."""
    if first is None or second is None:
        return second if first is None else first
    return {number: value + second[number] for number, value in first.items()}


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
        with work.recorder.span("load parameters", "prepare"):
            work.load(state.vectors)
        work.reducer.begin(requests)
        with work.recorder.span("compute", "compute"):
            shares = self._compute(epoch, step, self.update.optimizer.frozen(state.step))
        computed, paused = clock(), work.reducer.waited
        with work.recorder.span("reduction", "reduction"):
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
        with work.recorder.span("update", "update"):
            self.update.step(state.vectors, gradient, lr, state.step)
            if reduced.statistics.size:
                work.network.update_buffers(state.vectors[BUFFERS], reduced.statistics / samples)
            self.update.finish(state.vectors, state.step)
        state.progress.step += 1
        state.progress.samples_seen += samples
        data = (computed - started - paused) * sum(shares) / len(shares)
        compute = computed - started - paused - data + clock() - finished
        seconds = Seconds(compute, data, waiting, finished - computed - (waiting - paused))
        requested = Requests(*map(bool, reduced.requests))
        return StepOutcome(float(reduced.sums[LOSS]) / weights, int(reduced.sums[CORRECT]), samples, seconds, requested)

    def _compute(self, epoch: int, step: int, frozen: tuple[str, ...]) -> list[float]:
        """Compute all shards; the share of time that each one's batch took."""
        work, reducer = self.work, self.work.reducer
        results = self.pool.map(work, work.batches, epoch, step, frozen)
        for _ in range(work.network.rounds(frozen, work.parts)):
            sums = {
                shard: None if isinstance(result, float) else result
                for shard, result in zip(work.batches, results, strict=True)
            }
            results = self.pool.map(work.continuation, work.batches, reducer.total(sums, add_sums))
        return [result for result in results if isinstance(result, float)]
