"""A network: layers in order, the parameters they share one flat vector for, and the two things it does."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import ParamLayout, Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Purpose, random_words
from dptrain.nn.fusion import fuse
from dptrain.nn.layer import Layer, Parameters
from dptrain.nn.loss import softmax_cross_entropy

Prepared = list[Parameters]

# For whoever computes with parameters that may have blown up, and judges the result once instead of at every warning.
quiet = np.errstate(over="ignore", invalid="ignore")

# A block has 8 to 32 samples: doubled until what its layers put out numbers 8 times the parameters.
LEAST_BLOCK, LARGEST_BLOCK, TIMES_PARAMETERS = 8, 32, 8


@dataclass(frozen=True)
class Outcome:
    """What a microbatch came to: the sum of its losses and how many samples were classified rightly."""

    loss_sum: float
    correct: int

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.loss_sum + other.loss_sum, self.correct + other.correct)


class Network:
    """Layers applied one after the other to samples of shape `input_shape` (C, H, W).

    The last layer gives K logits a sample. ValueError when layers do not fit together.
    """

    def __init__(self, layers: Sequence[Layer], input_shape: Shape, *, fused: bool = True) -> None:
        self.input_shape = tuple(input_shape)
        self.layers = list(layers)
        if len({id(layer) for layer in self.layers}) != len(self.layers):
            raise ValueError("one layer object stands twice in the network; make a new one for each place")
        self.output_shapes: list[Shape] = []
        numbers: Counter[str] = Counter()
        shapes: dict[str, Shape] = {}
        shape = self.input_shape
        for layer in self.layers:
            layer._frozen = False
            numbers[layer.kind] += 1
            layer.name = f"{layer.kind}{numbers[layer.kind]}"
            shape = layer.bind(shape)
            self.output_shapes.append(shape)
            own = layer.parameter_shapes()
            _check_names(layer, own)
            shapes |= {f"{layer.name}.{name}": extents for name, extents in own.items()}
            layer._frozen = True
        if len(shape) != 1:
            raise ValueError(
                f"the network puts out {shape}, expected one logit a class: end it with Flatten(), Linear(K)"
            )
        if not shapes:
            raise ValueError("the network has no parameters, there is nothing to train")
        self.classes = shape[0]
        self.layout = ParamLayout(shapes)
        self.block = _samples_of_a_block(sum(map(math.prod, self.output_shapes)), self.layout.size)
        self.stages = fuse(self.layers) if fused else self.layers
        self._own_parameters = [_own_names(stage.name, shapes) for stage in self.stages]
        self._first_trained = next(position for position, own in enumerate(self._own_parameters) if own)

    def description(self) -> list[str]:
        """One line a layer: how it was made and what it puts out. Networks with other lines are not the same."""
        shaped = zip(self.layers, self.output_shapes, strict=True)
        return [f"input {self.input_shape}", *(f"{layer.name}: {layer!r} -> {shape}" for layer, shape in shaped)]

    def initial_parameters(self, seed: int) -> Array:
        """A new vector (P,): biases 0, weights uniform with variance 2 / fan_in (He et al. 2015).

        Uniform from -b to b with b = sqrt(6 / fan_in): 24 bits of a random word, a product and a difference
        are exact arithmetic, so a seed means the same parameters on any machine and NumPy. The logarithms that
        normal draws need are not.
        """
        flat = np.zeros(self.layout.size, np.float32)
        views = self.layout.views(flat)
        layers = {layer.name: layer for layer in self.layers}
        for number, (name, view) in enumerate(views.items()):
            owner, own = name.rsplit(".", 1)
            if own == "weight":
                words = random_words(seed, Purpose.INITIAL_PARAMETERS, number, view.size)
                fractions = (words >> np.uint64(40)).astype(np.float64) * 2.0**-24  # in [0, 1)
                bound = math.sqrt(6 / layers[owner].fan_in())
                view[...] = (bound * (2 * fractions - 1)).reshape(view.shape)
        return flat

    def prepare(self, parameters: Array, workspace: Workspace) -> Prepared:
        """Parameters (P,) by stage, with what all shards of a step can share; valid until one of the two changes."""
        by_stage = zip(self.stages, self._by_stage(parameters), strict=True)
        return [stage.prepare(own, workspace) for stage, own in by_stage]

    def loss_and_grad(
        self,
        parameters: Array | Prepared,
        images: Array,
        labels: NDArray[np.int64],
        gradient: Array,
        workspace: Workspace,
    ) -> Outcome:
        """Write the gradient of the summed loss to `gradient` (P,), for images (H, W, N, C) and labels (N,).

        `parameters` are (P,), or prepared.

        Sums, not means: see `softmax_cross_entropy`. An empty microbatch has a zero gradient. One of more than
        `block` samples is computed in blocks, whose gradients are added in order.
        """
        prepared = self._prepared(parameters, workspace)
        gradient.fill(0)  # a layer may add to it, and one that leaves it alone has none
        samples, outcome = images.shape[-2], Outcome(0.0, 0)
        if 0 < samples <= self.block:
            return self._loss_and_grad_of_block(prepared, images, labels, gradient, workspace)
        part = workspace.array("network", "gradient of a block", gradient.shape)
        for start in range(0, samples, self.block):
            own = slice(start, start + self.block)
            part.fill(0)
            outcome += self._loss_and_grad_of_block(prepared, images[..., own, :], labels[own], part, workspace)
            gradient += part
        return outcome

    def _loss_and_grad_of_block(
        self, values: Prepared, images: Array, labels: NDArray[np.int64], gradient: Array, workspace: Workspace
    ) -> Outcome:
        """`loss_and_grad` for 1 to `block` samples, with a gradient that is zero."""
        gradients = self._by_stage(gradient)
        saved: list[Any] = []
        x = images
        for stage, own in zip(self.stages, values, strict=True):
            x, kept = stage.forward(x, own, workspace)
            saved.append(kept)
        losses, dx = softmax_cross_entropy(x, labels, workspace)
        outcome = _outcome(losses, x, labels)
        for position in range(len(self.stages) - 1, self._first_trained - 1, -1):
            if dx is None:
                raise TypeError(f"{self.stages[position + 1]!r} returned no dx from backward, though it was needed")
            dx = self.stages[position].backward(
                dx,
                saved[position],
                values[position],
                gradients[position],
                workspace,
                need_dx=position > self._first_trained,
            )
        return outcome

    def predict(self, parameters: Array | Prepared, images: Array, workspace: Workspace) -> Array:
        """Logits (N, K) for images (H, W, N, C), all computed together; valid until the workspace is used again."""
        x = images
        for stage, own in zip(self.stages, self._prepared(parameters, workspace), strict=True):
            x, _ = stage.forward(x, own, workspace)
        return x

    def _prepared(self, parameters: Array | Prepared, workspace: Workspace) -> Prepared:
        return parameters if isinstance(parameters, list) else self.prepare(parameters, workspace)

    def _by_stage(self, flat: Array) -> list[dict[str, Array]]:
        """For each stage its own parameters' views of a flat vector."""
        views = self.layout.views(flat)
        return [{short: views[name] for short, name in own.items()} for own in self._own_parameters]


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


def _own_names(stage: str, names: Iterable[str]) -> dict[str, str]:
    """Of the parameters' names those of a stage, by what it calls them itself."""
    return {name.removeprefix(f"{stage}."): name for name in names if name.rsplit(".", 1)[0] == stage}


def _check_names(layer: Layer, parameter_shapes: dict[str, Shape]) -> None:
    """ValueError unless names and shapes can stand in a checkpoint."""
    if not re.fullmatch(r"[A-Za-z_]*[A-Za-z_]", layer.kind):
        raise ValueError(
            f"{layer!r} has the kind {layer.kind!r}, expected letters: layers are named by kind and number"
        )
    for name, shape in parameter_shapes.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"{layer!r} has a parameter named {name!r}, expected letters, digits and underscores")
        if not shape or min(shape) < 1:
            raise ValueError(f"{layer!r} has a parameter {name!r} of shape {shape}, expected extents of at least 1")


def _outcome(losses: Array, logits: Array, labels: NDArray[np.int64]) -> Outcome:
    return Outcome(float(losses.sum(dtype=np.float64)), int(np.count_nonzero(logits.argmax(axis=1) == labels)))
