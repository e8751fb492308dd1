"""Segments: the parts of a network between layers that couple samples, computed block after block of samples.

A layer that couples samples needs the whole microbatch before it can compute any output, so the network is cut there.
Within a segment one block passes through all layers while its arrays are in the cache; then comes the next block.
Values that a later segment reads are kept for the whole microbatch.

    forward     each segment: every block, then `CoupledLayer.join` of what the blocks collected
    loss        the last segment: every block forward, loss, and backward at once
    backward    each earlier segment, in reverse: every block, then `CoupledLayer.join_backward`

At a synchronized layer, `join` and `join_backward` pause: they yield the sums of the microbatch, and are sent the total
of all shards.

A network without such layers is one segment. A user's layer that couples samples gets its whole microbatch: its segment
has a single block. So does a user's subclass of BatchNorm2d, which may change what is normalised.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, BlockWorkspace, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn.graph import Graph
from dptrain.nn.layer import CoupledLayer, Pass, Runner, is_users, where

# In a network that couples samples a block has 16 to 256 samples: doubled until its layers' outputs have 8 times as
# many values as there are parameters. For wide layers with small maps the work for each parameter is large: 256
# channels on 3 x 3 pixels took 770 us a sample in blocks of 8, 330 in blocks of 64. In narrow networks the calls cost
# much: the step of ResNet-20 is 9 to 12 % faster with 16 than with 8, and not faster with 32 (measured on Zen 4).
LEAST_BLOCK, LARGEST_BLOCK, TIMES_PARAMETERS = 16, 256, 8
OWNER = "segments"  # of arrays for whole microbatches

Result = TypeVar("Result")
Sums = dict[int, Any]  # by node
Rounds = Generator[Sums, Sums, Result]  # yields the sums of a microbatch, and is sent those of all microbatches


class Phase(Enum):
    """What a task computes of its layer: all, or one phase of a `CoupledLayer`."""

    WHOLE = "whole"
    COLLECT = "collect"
    APPLY = "apply"


class Task(NamedTuple):
    """A node, by its number in the graph."""

    number: int
    phase: Phase


@dataclass(frozen=True)
class Segment:
    """Tasks in the order of the forward pass; `block` samples are computed at a time, or all if it is None."""

    level: int
    tasks: tuple[Task, ...]
    block: int | None

    def rows(self, samples: int) -> list[slice]:
        """The blocks of a microbatch, which may be empty."""
        block = self.block or max(1, samples)
        return [slice(start, min(start + block, samples)) for start in range(0, samples, block)]


class Plan:
    """The segments of a graph, in which each node has so many `parameters`.

    `block` is for a network that couples no samples.
    """

    def __init__(self, graph: Graph, parameters: Sequence[int], block: int) -> None:
        self.graph = graph
        self.users = {node.layer.name for node in graph.nodes if is_users(node.layer)}
        self.level = [-1]  # by value: that of the segment which computes it, -1 for the images
        available = [0]  # by value: the first level that can read blocks of it
        self.crossing: set[int] = set()  # values that a later segment reads
        tasks: defaultdict[int, list[Task]] = defaultdict(list)  # by level
        alone: set[int] = set()  # levels with a layer that needs the whole microbatch at once
        for number, node in enumerate(graph.nodes):
            level, phase = max(available[value] for value in node.inputs), Phase.WHOLE
            if isinstance(node.layer, CoupledLayer) and node.layer.name not in self.users:
                tasks[level].append(Task(number, Phase.COLLECT))
                level, phase = level + 1, Phase.APPLY
            elif node.layer.couples_samples:
                if isinstance(node.layer, CoupledLayer) and node.layer.synchronized:
                    raise ValueError(
                        f"{where(node.layer)}: a subclass of BatchNorm2d is not synchronized: omit sync=True"
                    )
                level += 1
                alone.add(level)
            tasks[level].append(Task(number, phase))
            self.crossing.update(value for value in node.inputs if self.level[value] < level)
            # A fused node skips the numbers of the values inside it.
            self.level += [level] * (node.output + 1 - len(self.level))
            available += [level + (level in alone)] * (node.output + 1 - len(available))
        coupled = len(tasks) > 1
        self.couples_samples = coupled or bool(alone)
        self.segments = [
            Segment(level, tuple(some), None if level in alone else self._block(some, parameters) if coupled else block)
            for level, some in sorted(tasks.items())
        ]
        phases = (Phase.COLLECT, Phase.APPLY)
        pauses = [self._synchronizes(segment, phase) for segment in self.segments for phase in phases]
        self.rounds = sum(pauses)  # how often the passes of a microbatch pause

    def joined(self, segment: Segment, phase: Phase) -> list[int]:
        """The nodes of coupled layers that a segment joins: after COLLECT forward, after APPLY backward."""
        numbers = [number for number, one in segment.tasks if one is phase]
        if phase is Phase.COLLECT:
            return numbers
        return [number for number in reversed(numbers) if self.graph.wanted[self.graph.nodes[number].output]]

    def coupled(self, number: int) -> CoupledLayer:
        """The layer of such a node."""
        return cast(CoupledLayer, self.graph.nodes[number].layer)

    def _synchronizes(self, segment: Segment, phase: Phase) -> bool:
        return any(self.coupled(number).synchronized for number in self.joined(segment, phase))

    def _block(self, tasks: Sequence[Task], parameters: Sequence[int]) -> int:
        """How many samples to compute together, from the layers' output values for one sample and the parameters."""
        computed = [task.number for task in tasks if task.phase is not Phase.COLLECT]
        values = sum(math.prod(self.graph.nodes[number].shape) for number in computed)
        block, total = LEAST_BLOCK, sum(parameters[number] for number in computed)
        while block < LARGEST_BLOCK and block * values < TIMES_PARAMETERS * total:
            block *= 2
        return block


Blocks = list[tuple[slice, Array]]  # of an array (..., N, C) of the whole microbatch: a block's samples, and its array


class Vectors(NamedTuple):
    """Flat vectors, a gradient (P,) and statistics (B,), and by node its slices of both."""

    gradient: Array
    statistics: Array
    slices: Sequence[tuple[slice, slice]]


class Microbatch:
    """The passes of one microbatch, of images (H, W, N, C), through a plan.

    `passes` are the contexts of the nodes. They write to the vectors of a block, which are added to those of the
    microbatch, `total`. Both may have the same gradient, for a microbatch of one block.
    """

    def __init__(
        self,
        plan: Plan,
        passes: Sequence[Pass],
        images: Array,
        total: Vectors,
        block: Vectors,
        workspace: Workspace,
        draws: Draws,
        runner: Runner,
    ) -> None:
        self.plan, self.passes, self.total, self.block = plan, passes, total, block
        self.samples, self.workspace, self.draws, self.runner = images.shape[-2], workspace, draws, runner
        everything = slice(0, self.samples)
        self._values: defaultdict[int, Blocks] = defaultdict(list, {0: [(everything, images)]})
        self._gradients: defaultdict[int, Blocks] = defaultdict(list)  # by value, or ~number between a node's phases
        self._first: dict[int, tuple[int, int]] = {}  # by value: node and input whose gradient comes first
        self._saved: dict[tuple[int, int], tuple[Any, int]] = {}  # by node and start of the block; with `Pass.drawn`
        self._parts: defaultdict[int, list[Any]] = defaultdict(list)  # by node: what its blocks collected
        self._couplings: dict[int, Any] = {}  # by node

    def forward(self, segment: Segment, rows: slice) -> Array:
        """Compute a block; returns the output of the last layer that was computed."""
        workspace = self._enter(segment, rows)
        if isinstance(workspace, BlockWorkspace):
            workspace.begin()
        local: dict[int, Array] = {}
        kept: list[Any] = []
        y = self._values[0][0][1]
        for number, phase in segment.tasks:
            node, call = self.plan.graph.nodes[number], self.passes[number]
            inputs = [
                local[value] if value in local else self._value(value, segment, rows, workspace)
                for value in node.inputs
            ]
            given: Any = inputs[0] if len(inputs) == 1 else tuple(inputs)
            if phase is Phase.COLLECT:
                self._parts[number].append(self.runner.collect(cast(CoupledLayer, node.layer), given, call))
                continue
            call.coupling = self._couplings.get(number)
            y, saved = self.runner.forward(node.layer, given, call)
            local[node.output] = y
            self._saved[number, rows.start] = saved, call.drawn
            if phase is Phase.WHOLE:
                self._add_statistics(number, rows.stop - rows.start)
            if node.output in self.plan.crossing:
                self._values[node.output].append((rows, y))
                kept.append(y)
            kept.append(saved)
        if isinstance(workspace, BlockWorkspace):
            workspace.keep(kept, self.plan.users)
        return y

    def join(self, segment: Segment) -> Rounds[None]:
        """Combine what all blocks of the forward pass have collected."""
        numbers = self.plan.joined(segment, Phase.COLLECT)
        totals = yield from self._totals(
            {number: layer.merge(self._parts[number]) for number, layer in self._synchronized(numbers)}
        )
        for number in numbers:
            parts = self._parts.pop(number)
            given = [totals[number]] if number in totals else parts
            self._couplings[number] = self.plan.coupled(number).join(given, self.passes[number])
            self._add_statistics(number, self.samples)

    def backward(self, segment: Segment, rows: slice, dy: Array | None = None) -> None:
        """Compute a block; dy is the gradient of the last node's output, in the last segment."""
        workspace, graph = self._enter(segment, rows), self.plan.graph
        local = {} if dy is None else {graph.nodes[-1].output: dy}
        for number, phase in reversed(segment.tasks):
            node, call = graph.nodes[number], self.passes[number]
            if phase is Phase.COLLECT:
                if not call.need_dx:
                    continue
                call.coupling = self._couplings[number]
                dy = self._gathered(self._gradients[~number], rows, f"gradient {~number}", workspace)
                result: Any = self.runner.backward(
                    node.layer, dy, self._value(node.inputs[0], segment, rows, workspace), call
                )
            elif not graph.wanted[node.output]:
                continue
            else:
                dy = self._gradient_of(node.output, local, rows, workspace)
                saved, call.drawn = self._saved.pop((number, rows.start))
                if phase is Phase.APPLY:
                    layer, x = cast(CoupledLayer, node.layer), self._value(node.inputs[0], segment, rows, workspace)
                    out = self._new_block(self._gradients, ~number, dy.shape, rows) if call.need_dx else dy
                    self._parts[number].append(self.runner.collect_backward(layer, dy, x, saved, out, call))
                    continue
                result = self.runner.backward(node.layer, dy, saved, call)
                self._add_gradient(number, complete=rows.stop == self.samples)
            if call.need_dx:
                results = result if len(node.inputs) > 1 else (result,)
                for place, (value, dx) in enumerate(zip(node.inputs, results, strict=True)):
                    if graph.wanted[value]:
                        self._add_gradient_of(value, dx, (number, place), segment, local, rows)

    def join_backward(self, segment: Segment) -> Rounds[None]:
        """Combine what all blocks of the backward pass have collected."""
        numbers = self.plan.joined(segment, Phase.APPLY)
        totals = yield from self._totals(
            {number: layer.merge_backward(self._parts[number]) for number, layer in self._synchronized(numbers)}
        )
        for number in numbers:
            parts, coupling = self._parts.pop(number), self._couplings[number]
            layer, call = self.plan.coupled(number), self.passes[number]
            self._couplings[number] = layer.join_backward(parts, coupling, call, totals.get(number))
            self._add_gradient(number, complete=True)

    def _synchronized(self, numbers: Sequence[int]) -> list[tuple[int, CoupledLayer]]:
        layers = [(number, self.plan.coupled(number)) for number in numbers]
        return [(number, layer) for number, layer in layers if layer.synchronized]

    def _totals(self, sums: Sums) -> Rounds[Sums]:
        """The totals of all shards; pauses, unless there is nothing to synchronize."""
        return (yield sums) if sums else {}

    def _enter(self, segment: Segment, rows: slice) -> Workspace:
        """Let the passes of a segment compute a block; returns its workspace."""
        workspace, draws = self.workspace, self.draws.after(rows.start) if rows.start else self.draws
        if segment is not self.plan.segments[-1] and rows.stop - rows.start < self.samples:
            workspace = self.workspace.block((segment.level, rows.start))
        for number, _ in segment.tasks:
            call = self.passes[number]
            call.workspace, call.draws, call.drawn = workspace, draws, 0
        return workspace

    def _value(self, value: int, segment: Segment, rows: slice, workspace: Workspace) -> Array:
        """A value of an earlier segment, or the images. A copy is for one segment alone, whose layers may save it."""
        if value == 0:
            return self._values[0][0][1][..., rows, :]
        return self._gathered(self._values[value], rows, f"value {value} for {segment.level}", workspace)

    def _gathered(self, blocks: Blocks, rows: slice, purpose: str, workspace: Workspace) -> Array:
        """These rows as one array: a block, or a copy of parts of several."""
        for place, array in blocks:
            if place == rows:
                return array
        first = blocks[0][1]
        whole = workspace.array(OWNER, purpose, (*first.shape[:-2], rows.stop - rows.start, first.shape[-1]))
        for place, array in blocks:
            start, stop = max(place.start, rows.start), min(place.stop, rows.stop)
            if start < stop:
                part = array[..., start - place.start : stop - place.start, :]
                np.copyto(whole[..., start - rows.start : stop - rows.start, :], part)
        return whole

    def _new_block(self, blocks: dict[int, Blocks], key: int, shape: Shape, rows: slice) -> Array:
        """Memory for a block that later segments read."""
        array = self.workspace.array(OWNER, f"{key} from {rows.start}", shape)
        blocks[key].append((rows, array))
        return array

    def _add_gradient_of(
        self, value: int, dx: Array, source: tuple[int, int], segment: Segment, local: dict[int, Array], rows: slice
    ) -> None:
        """Add dx, from a node's input `source`, to the gradient of a value."""
        if self.plan.level[value] == segment.level:
            if value in local:
                local[value] += dx
            else:
                local[value] = dx
        elif self._first.setdefault(value, source) == source:
            if rows.stop - rows.start == self.samples:  # no other block will use the memory of dx
                self._gradients[value].append((rows, dx))
            else:
                np.copyto(self._new_block(self._gradients, value, dx.shape, rows), dx)
        else:
            for place, array in self._gradients[value]:
                start, stop = max(place.start, rows.start), min(place.stop, rows.stop)
                if start < stop:
                    array[..., start - place.start : stop - place.start, :] += dx[
                        ..., start - rows.start : stop - rows.start, :
                    ]

    def _gradient_of(self, value: int, local: dict[int, Array], rows: slice, workspace: Workspace) -> Array:
        """The complete gradient of a value that this segment has computed."""
        if value not in self._gradients:
            return local.pop(value)
        gradient = self._gathered(self._gradients[value], rows, f"gradient {value}", workspace)
        if value in local:
            gradient += local.pop(value)
        return gradient

    def _add_statistics(self, number: int, samples: int) -> None:
        """Add those that a node has written for a number of samples."""
        _, part = self.block.slices[number]
        if part.start < part.stop:
            self.total.statistics[part] += samples * self.block.statistics[part]
            self.block.statistics[part] = 0

    def _add_gradient(self, number: int, *, complete: bool) -> None:
        """Add the one that a node has written, which is the last one if `complete`."""
        layer, (part, _) = self.plan.graph.nodes[number].layer, self.block.slices[number]
        if part.start < part.stop and self.block.gradient is not self.total.gradient:
            self.total.gradient[part] += self.block.gradient[part]
            if layer.name in self.plan.users:
                self.block.gradient[part] = 0  # it may add to it
        if complete:
            self.runner.complete(layer)


def alone(rounds: Rounds[Result]) -> Result:
    """The result of a microbatch that is not synchronized with others."""
    try:
        sums = next(rounds)
        while True:
            sums = rounds.send(sums)
    except StopIteration as end:
        result: Result = end.value
        return result
