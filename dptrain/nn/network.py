"""A network: its layers, the flat vectors of their tensors, loss and gradient, prediction."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import Layout, Shape
from dptrain.arrays.memory import Array, Workspace, aligned_zeros
from dptrain.arrays.random import NO_KEY, Draws, Purpose, random_words
from dptrain.nn.fusion import fuse
from dptrain.nn.layer import Layer
from dptrain.nn.loss import softmax_cross_entropy
from dptrain.nn.passes import Arrays, Parameters, Pass
from dptrain.nn.runner import PLAIN, Runner
from dptrain.nn.tensor import Tensor

# For code that checks its result for NaN and infinity once, instead of at every warning.
quiet = np.errstate(over="ignore", invalid="ignore")

# A block has 8 to 32 samples: doubled until what its layers put out numbers 8 times the parameters.
LEAST_BLOCK, LARGEST_BLOCK, TIMES_PARAMETERS = 8, 32, 8


@dataclass(frozen=True)
class Prepared:
    """What all shards of a step read, by stage: parameters with what `Layer.prepare` made of them, and buffers."""

    parameters: list[Parameters]
    buffers: Sequence[Arrays]


@dataclass(frozen=True)
class Outcome:
    """Of a microbatch: the sum of its losses, and how many samples were classified correctly."""

    loss_sum: float
    correct: int

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.loss_sum + other.loss_sum, self.correct + other.correct)


class Network:
    """Layers applied one after the other to samples of shape `input_shape` (C, H, W).

    The last layer gives K logits a sample. ValueError when layers do not fit together.

    Parameters and buffers are flat vectors (P,) and (B,): `layout` and `buffer_layout` say where each tensor lies, and
    `tensors` what its layer declares about it, by full name such as "conv1.weight". B may be 0.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: Shape, *, fused: bool = True) -> None:
        self.input_shape = tuple(input_shape)
        self.layers = list(layers)
        if len({id(layer) for layer in self.layers}) != len(self.layers):
            raise ValueError("one layer object stands twice in the network; make a new one for each place")
        self.output_shapes: list[Shape] = []
        self.tensors: dict[str, Tensor] = {}
        numbers: Counter[str] = Counter()
        shape = self.input_shape
        for layer in self.layers:
            layer._frozen = False
            numbers[layer.kind] += 1
            layer.name = f"{layer.kind}{numbers[layer.kind]}"
            shape = layer.bind(shape)
            self.output_shapes.append(shape)
            self.tensors |= _tensors_of(layer)
            layer._frozen = True
        if len(shape) != 1:
            raise ValueError(
                f"the network puts out {shape}, expected one logit a class: end it with Flatten(), Linear(K)"
            )
        self.classes = shape[0]
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        self.layout = Layout({name: shapes[name] for name, one in self.tensors.items() if one.kind == "parameter"})
        self.buffer_layout = Layout({name: shapes[name] for name, one in self.tensors.items() if one.kind == "buffer"})
        if not any(tensor.trained for tensor in self.tensors.values()):
            raise ValueError("the network has no parameters, there is nothing to train")
        self.couples_samples = any(layer.couples_samples for layer in self.layers)
        self.block = _samples_of_a_block(sum(map(math.prod, self.output_shapes)), self.layout.size)
        self.stages = fuse(self.layers) if fused else self.layers
        self._numbers = {layer.name: number for number, layer in enumerate(self.layers)}
        self._names = {layout: _names_by_stage(self.stages, layout) for layout in (self.layout, self.buffer_layout)}
        self._first_trained = next(
            position
            for position, names in enumerate(self._names[self.layout])
            if any(self.tensors[name].trained for name in names.values())
        )
        self._constant = [name for name in self.layout.shapes if not self.tensors[name].trained]
        self._momentum = self.buffer_layout.expand(
            {name: self.tensors[name].momentum for name in self.buffer_layout.shapes}
        )

    def spec(self) -> dict[str, Any]:
        """What the network computes, in plain JSON values: networks with equal specs are the same."""
        return {
            "input_shape": list(self.input_shape),
            "layers": [{"name": layer.name, **layer.spec()} for layer in self.layers],
        }

    def tuning(self) -> dict[str, Any]:
        """By layer the choices that change speed and last bits, but not what is computed."""
        return {layer.name: tuning for layer in self.layers if (tuning := layer.tuning())}

    def description(self) -> list[str]:
        """One line a layer, for people: how it was constructed, and the shape of its output."""
        shaped = zip(self.layers, self.output_shapes, strict=True)
        return [f"input {self.input_shape}", *(f"{layer.name}: {layer!r} -> {shape}" for layer, shape in shaped)]

    def initial(self, seed: int) -> dict[str, Array]:
        """New vectors "parameters" (P,) and "buffers" (B,), as each tensor's `init` gives them for the seed."""
        vectors = {"parameters": aligned_zeros(self.layout.size), "buffers": aligned_zeros(self.buffer_layout.size)}
        views = self.layout.views(vectors["parameters"]) | self.buffer_layout.views(vectors["buffers"])
        for number, (name, view) in enumerate(views.items()):
            words = partial(random_words, seed, Purpose.INITIAL_PARAMETERS, number)
            view[...] = self.tensors[name].init(view.shape, words)
        return vectors

    def prepare(self, parameters: Array, buffers: Array, workspace: Workspace, runner: Runner = PLAIN) -> Prepared:
        """Parameters (P,) and buffers (B,) by stage, with what all shards of a step can share.

        Valid until one of the vectors changes or the workspace is used again.
        """
        views = self._by_stage(self.layout, parameters)
        return Prepared(
            [runner.prepare(stage, own, workspace) for stage, own in zip(self.stages, views, strict=True)],
            self._by_stage(self.buffer_layout, buffers),
        )

    def loss_and_grad(
        self,
        prepared: Prepared,
        images: Array,
        labels: NDArray[np.int64],
        gradient: Array,
        workspace: Workspace,
        *,
        statistics: Array | None = None,
        draws: Draws = NO_KEY,
        runner: Runner = PLAIN,
    ) -> Outcome:
        """Write the gradient of the summed loss to `gradient` (P,), for images (H, W, N, C) and labels (N,).

        `statistics` (B,) become N times what this microbatch gives for the buffers. Both are sums, not means: see
        `softmax_cross_entropy`. An empty microbatch gives zeros. One of more than `block` samples is computed in
        blocks, whose sums are added in order, unless a layer couples samples. `draws` is the key of random draws.
        """
        gradient.fill(0)  # a layer may add to it
        if statistics is None:
            statistics = workspace.array("network", "statistics", (self.buffer_layout.size,))
        statistics.fill(0)
        samples, outcome = images.shape[-2], Outcome(0.0, 0)
        block = self.block_of(samples)
        for start in range(0, samples, block or 1):
            rows = slice(start, start + block)
            part = gradient
            if samples > block:
                part = workspace.array("network", "gradient of a block", gradient.shape)
                part.fill(0)
            passes = self._passes(prepared, workspace, part, draws.after(start))
            outcome += self._loss_and_grad_of_block(passes, images[..., rows, :], labels[rows], runner, workspace)
            if samples > block:
                gradient += part
            for one, own in zip(passes, self._by_stage(self.buffer_layout, statistics), strict=True):
                for name, total in own.items():
                    total += len(labels[rows]) * one.statistics[name]
        views = self.layout.views(gradient)
        for name in self._constant:
            views[name].fill(0)
        return outcome

    def block_of(self, samples: int) -> int:
        """How many samples of a microbatch of `samples` are computed together, at most."""
        return samples if self.couples_samples else self.block

    def _passes(self, prepared: Prepared, workspace: Workspace, gradient: Array, draws: Draws) -> list[Pass]:
        """The context of each stage for one block."""
        statistics = workspace.array("network", "statistics of a block", (self.buffer_layout.size,))
        statistics.fill(0)
        gradients = self._by_stage(self.layout, gradient)
        sums = self._by_stage(self.buffer_layout, statistics)
        return [
            Pass(
                parameters=prepared.parameters[position],
                buffers=prepared.buffers[position],
                workspace=workspace,
                training=True,
                gradients=gradients[position],
                statistics=sums[position],
                need_dx=position > self._first_trained,
                draws=draws,
                layer_number=self._numbers[stage.name],
            )
            for position, stage in enumerate(self.stages)
        ]

    def _loss_and_grad_of_block(
        self, passes: list[Pass], images: Array, labels: NDArray[np.int64], runner: Runner, workspace: Workspace
    ) -> Outcome:
        """`loss_and_grad` for samples that are computed together."""
        saved: list[Any] = []
        x = images
        for stage, call in zip(self.stages, passes, strict=True):
            x, kept = runner.forward(stage, x, call)
            saved.append(kept)
        losses, dx = softmax_cross_entropy(x, labels, workspace)
        outcome = _outcome(losses, x, labels)
        for position in range(len(self.stages) - 1, self._first_trained - 1, -1):
            if dx is None:
                raise TypeError(f"{self.stages[position + 1]!r} returned no dx from backward, though it was needed")
            dx = runner.backward(self.stages[position], dx, saved[position], passes[position])
        return outcome

    def predict(self, prepared: Prepared, images: Array, workspace: Workspace, runner: Runner = PLAIN) -> Array:
        """Logits (N, K) for images (H, W, N, C), all computed together; valid until the workspace is used again."""
        x = images
        for stage, parameters, buffers in zip(self.stages, prepared.parameters, prepared.buffers, strict=True):
            x, _ = runner.forward(stage, x, Pass(parameters, buffers, workspace))
        return x

    def decays(self) -> Array:
        """bool (P,): whether weight decay applies."""
        return self.layout.expand({name: self.tensors[name].decays for name in self.layout.shapes}, bool)

    def update_buffers(self, buffers: Array, mean_statistics: Array) -> None:
        """Move the running averages `buffers` (B,), in place, towards the mean statistics (B,) of a global batch."""
        buffers += self._momentum * (mean_statistics - buffers)

    def _by_stage(self, layout: Layout, flat: Array) -> list[dict[str, Array]]:
        """For each stage the views of its tensors in a flat vector."""
        views = layout.views(flat)
        return [{short: views[name] for short, name in names.items()} for names in self._names[layout]]


def _samples_of_a_block(values: int, parameters: int) -> int:
    """How many samples to compute together, from the values that all layers put out for one, and the parameters.

    Few, so that they stay in a core's cache: 64 take a third longer than 16 (measured). But what is done once a
    block for each parameter must stay small beside what is done for each sample: with widths 64, 128 and 256, 16
    samples ran 6 % faster than 8, with the default network on two cores 4 % slower.
    """
    block = LEAST_BLOCK
    while block < LARGEST_BLOCK and block * values < TIMES_PARAMETERS * parameters:
        block *= 2
    return block


def _names_by_stage(stages: Sequence[Layer], layout: Layout) -> list[dict[str, str]]:
    """For each stage its tensors in a layout: the layer's name for it, and the full name."""
    owners = [(*name.rsplit(".", 1), name) for name in layout.shapes]
    return [{short: name for owner, short, name in owners if owner == stage.name} for stage in stages]


def _tensors_of(layer: Layer) -> dict[str, Tensor]:
    """A layer's tensors by full name; ValueError unless they can be stored in a checkpoint."""
    if not re.fullmatch(r"[A-Za-z_]*[A-Za-z_]", layer.kind):
        raise ValueError(
            f"{layer!r} has the kind {layer.kind!r}, expected letters: layers are named by kind and number"
        )
    tensors: dict[str, Tensor] = {}
    for tensor in layer.tensors():
        if not re.fullmatch(r"[A-Za-z_]\w*", tensor.name):
            raise ValueError(f"{layer!r} has a tensor named {tensor.name!r}, expected letters, digits and underscores")
        if not tensor.shape or min(tensor.shape) < 1:
            raise ValueError(
                f"{layer!r} has a tensor {tensor.name!r} of shape {tensor.shape}, expected extents of at least 1"
            )
        name = f"{layer.name}.{tensor.name}"
        if name in tensors:
            raise ValueError(f"{layer!r} has two tensors named {tensor.name!r}")
        tensors[name] = tensor
    return tensors


def _outcome(losses: Array, logits: Array, labels: NDArray[np.int64]) -> Outcome:
    return Outcome(float(losses.sum(dtype=np.float64)), int(np.count_nonzero(logits.argmax(axis=1) == labels)))
