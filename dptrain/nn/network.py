"""A network: its layers, the flat vectors of their tensors, loss and gradient, prediction."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import Layout, Shape
from dptrain.arrays.memory import Array, Workspace, aligned_zeros
from dptrain.arrays.random import NO_KEY, Draws, Purpose, random_words
from dptrain.nn.fixed_norm import FixedNorm
from dptrain.nn.folding import FoldedNorm, fold
from dptrain.nn.fusion import fuse
from dptrain.nn.graph import Builder, Graph, Node, Part
from dptrain.nn.layer import PLAIN, Layer, Parameters, Pass, Runner, Views, read_only
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy
from dptrain.nn.segments import Microbatch, Plan, Rounds, Vectors, alone
from dptrain.system.cache import DEFAULT_KIB

# For code that checks its result for NaN and infinity once, instead of at every warning.
quiet = np.errstate(over="ignore", invalid="ignore")

# A block has 16 to 32 samples: doubled until its layers' outputs have 8 times as many values as there are parameters.
LEAST_BLOCK, LARGEST_BLOCK, TIMES_PARAMETERS = 16, 32, 8

Prepared = list[tuple[Parameters, Views]]  # by stage: what `Layer.prepare` returned, and the buffers


class PreparedEvaluation(list[tuple[Parameters, Views]]):
    """The same by stage of an evaluation."""


@dataclass(frozen=True)
class Outcome:
    """Of a microbatch: the sum of its losses, and how many samples were classified correctly."""

    loss_sum: float
    correct: int


class Network:
    """Layers, and how they are connected, for samples of shape `input_shape` (C, H, W).

    `parts` is a list of layers, applied one after the other, in which `Sequential` and `Residual` can stand for a
    layer. The last one gives K logits a sample. ValueError when layers do not fit together.

    Parameters and buffers are flat vectors (P,) and (B,). `layout` and `buffer_layout` have the place of each tensor,
    and `tensors` its layer's declaration, by full name such as "conv1.weight". B may be 0.
    """

    def __init__(self, parts: Part, input_shape: Shape, *, fused: bool = True) -> None:
        builder = Builder(input_shape)
        builder.add(parts, 0)
        self.input_shape, *shapes = builder.shapes
        self.nodes = builder.nodes  # one for each layer
        self.layers = [node.layer for node in self.nodes]
        self.tensors = builder.tensors
        if not shapes or len(shapes[-1]) != 1:
            found = f"the network's output has the shape {builder.shapes[-1]}"
            raise ValueError(f"{found}, expected one logit a class: end it with Flatten(), Linear(K)")
        (self.classes,) = shapes[-1]
        self.layout, self.buffer_layout = (
            Layout({name: tensor.shape for name, tensor in self.tensors.items() if tensor.kind == kind})
            for kind in ("parameter", "buffer")
        )
        trained = {name.rpartition(".")[0] for name, tensor in self.tensors.items() if tensor.trained}
        if not trained:
            raise ValueError("the network has no parameters, there is nothing to train")
        self.block = _samples_of_a_block(sum(map(math.prod, shapes)), self.layout.size)
        nodes = fuse(self.nodes) if fused else self.nodes
        self.evaluation_graph = Graph(fold(nodes) if fused else nodes, trained)
        self._fused = fused
        self._compute_in_training(nodes)
        self._moving: Any = True  # by value of the buffers, whether it follows the statistics; or all do
        self._constant = [name for name in self.layout.shapes if not self.tensors[name].trained]
        momentum = {name: self.tensors[name].momentum for name in self.buffer_layout.shapes}
        self._momentum = self.buffer_layout.expand(momentum)
        self.set_cache(DEFAULT_KIB)

    def _compute_in_training(self, nodes: Sequence[Node]) -> None:
        """Let a step compute these nodes, which are fused."""
        trained = {name.rpartition(".")[0] for name, tensor in self.tensors.items() if tensor.trained}
        self.graph = Graph(nodes, trained)
        self.stages = [node.layer for node in self.graph.nodes]  # the layers as they are computed, fused
        self._slices = [
            (_slice_of(self.layout, stage.name), _slice_of(self.buffer_layout, stage.name)) for stage in self.stages
        ]
        self._parameters = [part.stop - part.start for part, _ in self._slices]
        self.plan = Plan(self.graph, self._parameters, self.block)
        self._plans: dict[frozenset[str], Plan] = {frozenset(): self.plan}  # by the names of frozen parameters

    def freeze(self, names: Collection[str]) -> None:
        """Keep the buffers among these tensors, by full name, as they are.

        A BatchNorm2d of which all tensors are frozen normalises by its running averages in training too, as PyTorch's
        does after `eval()`. Parameters are frozen by the optimizer, and by `frozen` of `loss_and_grad`. Call it before
        `prepare`.
        """
        if buffers := [name for name in self.buffer_layout.shapes if name in names]:
            self._moving = ~self.buffer_layout.expand(dict.fromkeys(buffers, True), bool)
        nodes = [
            replace(node, layer=FixedNorm(node.layer)) if _frozen_norm(node.layer, names) else node
            for node in self.nodes
        ]
        if any(isinstance(node.layer, FixedNorm) for node in nodes):
            self._compute_in_training(fuse(nodes) if self._fused else nodes)
            self.set_cache(self.l2_kib)

    def set_cache(self, kib: int) -> None:
        """Set the size of a core's second-level cache. It decides how much is computed at once, and so the last bits.

        It must not change while arrays in a workspace are in use.
        """
        self.l2_kib = kib
        for node in [*self.graph.nodes, *self.evaluation_graph.nodes]:
            node.layer.set_cache(kib)

    def fused_names(self, graph: Graph) -> dict[str, str]:
        """The names of the layers that each stage of a graph computes, such as "conv1 + relu1", by its own name."""
        names, first = {}, 0
        for node in graph.nodes:
            inside = [layer.name for layer in self.layers[first : node.output]]
            first = node.output
            if isinstance(node.layer, FoldedNorm):
                inside = list(dict.fromkeys([*inside, node.layer.norm.name]))
            elif node.layer.name != inside[0]:  # an activation whose normalisation is folded into a convolution
                inside = [node.layer.name]
            names[node.layer.name] = " + ".join(inside)
        return names

    def spec(self) -> dict[str, Any]:
        """What the network computes, in JSON values."""
        names = ["input", *(layer.name for layer in self.layers)]
        return {
            "input_shape": list(self.input_shape),
            "layers": [
                {"name": node.layer.name, "inputs": [names[value] for value in node.inputs], **node.layer.spec()}
                for node in self.nodes
            ],
        }

    def complete(self, older: dict[str, Any]) -> dict[str, Any]:
        """The `spec` of a network that an older version wrote, each layer completed as by `Layer.complete`."""
        layers = older.get("layers")
        if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
            return older  # a file can hold anything
        by_name = {layer.name: layer for layer in self.layers}
        completed = (by_name[name].complete(one) if (name := one.get("name")) in by_name else one for one in layers)
        return {**older, "layers": list(completed)}

    def tuning(self) -> dict[str, Any]:
        """The size of the cache, as that of the "network", and `Layer.tuning` by layer."""
        of_layers = {layer.name: tuning for layer in self.layers if (tuning := layer.tuning())}
        return {"network": {"l2_kib": self.l2_kib}, **of_layers}

    def description(self) -> list[str]:
        """One line a layer: how it was constructed, its inputs if not the line before, and its output shape."""
        names, lines = ["input", *(layer.name for layer in self.layers)], [f"input {self.input_shape}"]
        for node in self.nodes:
            chained = node.inputs == (node.output - 1,)
            of = "" if chained else f" of {', '.join(names[value] for value in node.inputs)}"
            lines.append(f"{node.layer.name}: {node.layer!r}{of} -> {node.shape}")
        return lines

    @property
    def needs_images(self) -> bool:
        """Whether initial values depend on training images."""
        return any(tensor.from_images for tensor in self.tensors.values())

    def initial(self, seed: int, images: Iterable[Array] | None = None) -> dict[str, Array]:
        """New vectors "parameters" (P,) and "buffers" (B,), for blocks (H, W, N, C) of normalised sample images."""
        vectors = {"parameters": aligned_zeros(self.layout.size), "buffers": aligned_zeros(self.buffer_layout.size)}
        views = self.layout.views(vectors["parameters"]) | self.buffer_layout.views(vectors["buffers"])
        for number, (name, view) in enumerate(views.items()):
            words, tensor = partial(random_words, seed, Purpose.INITIAL_PARAMETERS, number), self.tensors[name]
            if images is not None and tensor.from_images:
                view[...] = tensor.from_images(images)
            else:
                view[...] = tensor.init(view.shape, words)
        return vectors

    def prepare(self, parameters: Array, buffers: Array, workspace: Workspace, runner: Runner = PLAIN) -> Prepared:
        """Parameters (P,) and buffers (B,) by stage, with what all shards of a step can share.

        Valid until one of the vectors changes or the workspace is used again.
        """
        views = self._by_stage(self.layout, read_only(parameters))
        made = [runner.prepare(stage, tensors, workspace) for stage, tensors in zip(self.stages, views, strict=True)]
        return list(zip(made, self._by_stage(self.buffer_layout, read_only(buffers)), strict=True))

    def prepare_evaluation(
        self, parameters: Array, buffers: Array, workspace: Workspace, runner: Runner = PLAIN
    ) -> PreparedEvaluation:
        """The same for `predict` alone, which is faster then: batch normalisation is folded into convolutions."""
        by_layer = self.layout.views_by_layer(read_only(parameters))
        buffers_by_layer = self.buffer_layout.views_by_layer(read_only(buffers))
        tensors = {
            layer.name: {**by_layer.get(layer.name, {}), **buffers_by_layer.get(layer.name, {})}
            for layer in self.layers
        }
        prepared = PreparedEvaluation()
        for node in self.evaluation_graph.nodes:
            layer = node.layer
            views = layer.folded(tensors) if isinstance(layer, FoldedNorm) else Views(by_layer.get(layer.name, {}))
            made = runner.prepare(layer, views, workspace)
            prepared.append((made, Views(buffers_by_layer.get(layer.name, {}))))
        return prepared

    def loss_and_grad(
        self,
        prepared: Prepared,
        images: Array,
        labels: NDArray[np.int64],
        gradient: Array,
        workspace: Workspace,
        *,
        statistics: Array | None = None,
        loss: CrossEntropy = CROSS_ENTROPY,
        draws: Draws = NO_KEY,
        runner: Runner = PLAIN,
        frozen: Collection[str] = (),
        parts: int = 1,
    ) -> Outcome:
        """Write the gradient of the summed loss to `gradient` (P,), for images (H, W, N, C) and labels (N,).

        `statistics` (B,) become N times the layers' statistics. An empty microbatch gives zeros. Samples are computed
        in blocks (`dptrain.nn.segments`), whose sums are added in order. The gradient of the parameters `frozen` is 0,
        and what only they need is not computed. If a layer couples samples, it couples those of each of `parts` equal
        parts of the microbatch. Synchronized layers see this microbatch alone.
        """
        return alone(
            self.in_rounds(
                *(prepared, images, labels, gradient, workspace),
                statistics=statistics,
                loss=loss,
                draws=draws,
                runner=runner,
                frozen=frozen,
                parts=parts,
            )
        )

    def rounds(self, frozen: Collection[str] = (), parts: int = 1) -> int:
        """How often `in_rounds` pauses, at most: for a microbatch of at least one sample in each part."""
        return self._plan_without(frozen).rounds * parts

    def in_rounds(
        self,
        prepared: Prepared,
        images: Array,
        labels: NDArray[np.int64],
        gradient: Array,
        workspace: Workspace,
        *,
        statistics: Array | None = None,
        loss: CrossEntropy = CROSS_ENTROPY,
        draws: Draws = NO_KEY,
        runner: Runner = PLAIN,
        frozen: Collection[str] = (),
        parts: int = 1,
    ) -> Rounds[Outcome]:
        """`loss_and_grad` that pauses at synchronized layers: there it yields sums, and is sent those of all shards.

        `prepared` and the arrays in the workspace must stay as they are until the end.
        """
        plan = self._plan_without(frozen)
        samples, loss_sum, correct = images.shape[-2], 0.0, 0
        if statistics is None:
            statistics = workspace.array("network", "statistics", (self.buffer_layout.size,))
        part, averages = gradient, workspace.array("network", "statistics of a block", statistics.shape)
        units = divided(samples, parts if plan.couples_samples else 1)
        if len(units) > 1 or any(len(segment.rows(samples)) > 1 for segment in plan.segments):
            part = workspace.array("network", "gradient of a block", gradient.shape)
            part.fill(0)
        for vector in (gradient, statistics, averages):
            vector.fill(0)  # a layer may add to it
        if not samples:
            return Outcome(0.0, 0)
        passes = self.passes(prepared, workspace, part, averages, draws, plan.graph)
        total, block = Vectors(gradient, statistics, self._slices), Vectors(part, averages, self._slices)
        for unit in units:
            keyed = draws.after(unit.start) if unit.start else draws
            images_of_unit = images[..., unit, :]
            microbatch = Microbatch(plan, passes, images_of_unit, total, block, workspace, keyed, runner)
            part_loss, part_correct = yield from _compute(microbatch, labels[unit], loss, workspace)
            loss_sum, correct = loss_sum + part_loss, correct + part_correct
        for name in (*self._constant, *frozen):
            gradient[self.layout.slices[name]] = 0
        return Outcome(loss_sum, correct)

    def _plan_without(self, frozen: Collection[str]) -> Plan:
        """The plan whose backward pass leaves out what only frozen parameters need."""
        names = frozenset(frozen)
        if names not in self._plans:
            trained = [name for name, tensor in self.tensors.items() if tensor.trained and name not in names]
            graph = Graph(self.graph.nodes, {name.rpartition(".")[0] for name in trained})
            self._plans[names] = Plan(graph, self._parameters, self.block)
        return self._plans[names]

    def passes(
        self,
        prepared: Prepared,
        workspace: Workspace,
        gradient: Array,
        statistics: Array,
        draws: Draws = NO_KEY,
        graph: Graph | None = None,
    ) -> list[Pass]:
        """The context of each stage for training, which writes to `gradient` (P,) and `statistics` (B,)."""
        views = zip(self._by_stage(self.layout, gradient), self._by_stage(self.buffer_layout, statistics), strict=True)
        graph = graph or self.graph
        stages = zip(graph.nodes, graph.need_dx, prepared, views, strict=True)
        return [
            Pass(parameters, buffers, workspace, True, gradients, averages, need_dx, draws, node.output - 1)
            for node, need_dx, (parameters, buffers), (gradients, averages) in stages
        ]

    def predict(self, prepared: Prepared, images: Array, workspace: Workspace, runner: Runner = PLAIN) -> Array:
        """Logits (N, K) for images (H, W, N, C), all computed together; valid until the workspace is used again."""
        passes = [Pass(parameters, buffers, workspace) for parameters, buffers in prepared]
        graph = self.evaluation_graph if isinstance(prepared, PreparedEvaluation) else self.graph
        return graph.forward(images, passes, runner)[0]

    def update_buffers(self, buffers: Array, mean_statistics: Array) -> None:
        """Move the running averages `buffers` (B,), in place, towards the mean statistics (B,) of a global batch."""
        np.add(buffers, self._momentum * (mean_statistics - buffers), out=buffers, where=self._moving)

    def _by_stage(self, layout: Layout, flat: Array) -> list[Views]:
        by_layer = layout.views_by_layer(flat)
        return [Views(by_layer.get(stage.name, {})) for stage in self.stages]


def _compute(
    microbatch: Microbatch, labels: NDArray[np.int64], loss: CrossEntropy, workspace: Workspace
) -> Rounds[tuple[float, int]]:
    """Both passes of a microbatch; the sum of its losses, and how many samples were classified correctly."""
    loss_sum, correct, samples = 0.0, 0, len(labels)
    *earlier, last = microbatch.plan.segments
    for segment in earlier:
        for rows in segment.rows(samples):
            microbatch.forward(segment, rows)
        yield from microbatch.join(segment)
    for rows in last.rows(samples):
        logits = microbatch.forward(last, rows)
        losses, dlogits = loss(logits, labels[rows], workspace)
        loss_sum += float(losses.sum(dtype=np.float64))
        correct += int(np.count_nonzero(logits.argmax(axis=1) == labels[rows]))
        microbatch.backward(last, rows, dlogits)
    yield from microbatch.join_backward(last)
    for segment in reversed(earlier):
        for rows in segment.rows(samples):
            microbatch.backward(segment, rows)
        yield from microbatch.join_backward(segment)
    return loss_sum, correct


def computable_alone(network: Network, images: Array, labels: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """A microbatch for `loss_and_grad`; one sample is doubled if synchronized layers may need more than one."""
    if network.rounds() and len(labels) == 1:
        return np.concatenate([images, images], axis=-2), np.concatenate([labels, labels])
    return images, labels


def divided(samples: int, parts: int) -> list[slice]:
    """`parts` slices of 0 to `samples`, at most one apart in length, without empty ones."""
    bounds = [part * samples // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(bounds) if start < end]


def _frozen_norm(layer: Layer, names: Collection[str]) -> TypeGuard[BatchNorm2d]:
    """Whether it is a BatchNorm2d, not a user's subclass, of which all tensors are among these names."""
    return type(layer) is BatchNorm2d and all(f"{layer.name}.{tensor.name}" in names for tensor in layer.tensors())


def _slice_of(layout: Layout, layer: str) -> slice:
    """The part of a flat vector that holds a layer's tensors."""
    parts = [part for name, part in layout.slices.items() if name.startswith(f"{layer}.")]
    return slice(parts[0].start, parts[-1].stop) if parts else slice(0, 0)


def _samples_of_a_block(values: int, parameters: int) -> int:
    """How many samples to compute together, from the layers' output values for one sample and the parameters.

    Few, so that they stay in a core's cache: 64 samples take a third longer than 16 (measured). But a block's work for
    each parameter must stay small: 16 samples ran faster than 8, by 6 % with widths 64, 128 and 256, and the default
    network by 3 to 5 % on Zen 4 and 5 to 8 % on Zen 3, which has half as much second-level cache.
    """
    block = LEAST_BLOCK
    while block < LARGEST_BLOCK and block * values < TIMES_PARAMETERS * parameters:
        block *= 2
    return block
