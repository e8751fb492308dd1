"""Networks as graphs of layers, in the order of computation.

Values are numbered: 0 is the network's input, and the output of the k-th layer has the number k.
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Union, cast

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.errors import ModelError
from dptrain.nn.layer import Layer, Pass, Runner, where
from dptrain.nn.tensor import Tensor

Part = Union[Layer, "Residual", Sequence["Part"]]  # a sequence of parts is applied one after the other


@dataclass(frozen=True)
class Node:
    """A layer, the numbers of the values that it reads, and number and sample shape of its output."""

    layer: Layer
    inputs: tuple[int, ...]
    output: int
    shape: Shape


class Sequential(list["Part"]):
    """Parts applied one after the other, as one part."""


class Residual:
    """body(x) + shortcut(x); without a shortcut body(x) + x (He et al. 2016)."""

    def __init__(self, body: Part, shortcut: Part = ()) -> None:
        self.body, self.shortcut = body, shortcut


class Add(Layer):
    """The sum of two inputs of one shape; x and dx are pairs of arrays."""

    kind = "add"

    def bind(self, input_shape: Any) -> Shape:
        first, second = input_shape
        if first != second:
            raise ValueError(
                f"Residual adds the shapes {first} and {second}, expected equal shapes: give it a shortcut that makes "
                "them equal, such as Conv2d(CHANNELS, 1, stride=2)"
            )
        return cast(Shape, first)

    def forward(self, x: Any, call: Pass) -> tuple[Array, None]:
        return np.add(x[0], x[1], out=call.workspace.array(self.name, "y", x[0].shape)), None

    def backward(self, dy: Array, saved: None, call: Pass) -> Any:
        copy = call.workspace.array(self.name, "dx", dy.shape)
        np.copyto(copy, dy)  # as each layer before may overwrite its dy
        return dy, copy


class Builder:
    """Names and binds layers, and appends them to `nodes` in the order of computation."""

    def __init__(self, input_shape: Shape) -> None:
        self.nodes: list[Node] = []
        self.shapes = [tuple(input_shape)]  # by number of the value
        self.tensors: dict[str, Tensor] = {}  # by full name
        self._numbers: Counter[str] = Counter()

    def add(self, part: Part, *inputs: int) -> int:
        """Apply a part to the values `inputs`; returns the number of its output. ValueError when it does not fit."""
        if isinstance(part, Layer):
            return self._add_layer(part, inputs)
        (value,) = inputs
        if isinstance(part, Residual):
            return self.add(Add(), self.add(part.body, value), self.add(part.shortcut, value))
        if not isinstance(part, list | tuple):
            raise TypeError(f"the network has {reprlib.repr(part)} in it, expected layers, Sequential or Residual")
        for one in part:
            value = self.add(one, value)
        return value

    def _add_layer(self, layer: Layer, inputs: tuple[int, ...]) -> int:
        if any(node.layer is layer for node in self.nodes):
            raise ValueError(f"the layer object {layer!r} is in the network twice; make a new one for each place")
        if not re.fullmatch(r"[A-Za-z_]+", layer.kind):
            raise ValueError(f"{layer!r} has the kind {layer.kind!r}, expected letters: layers are named by it")
        self._numbers[layer.kind] += 1
        layer.name = f"{layer.kind}{self._numbers[layer.kind]}"
        shapes: Any = [self.shapes[value] for value in inputs]
        shape = layer.bind(shapes[0] if len(shapes) == 1 else tuple(shapes))
        if not isinstance(shape, tuple) or not shape or not all(isinstance(one, int) and one > 0 for one in shape):
            raise ModelError(f"{where(layer)}: bind returned {shape!r}, expected the shape of an output sample")
        for tensor in layer.tensors():
            name = f"{layer.name}.{tensor.name}"
            if not re.fullmatch(r"[A-Za-z_]\w*", tensor.name) or name in self.tensors:
                raise ValueError(f"{layer!r} has a tensor named {tensor.name!r}, expected a new name, without dots")
            if tensor.from_images and inputs != (0,):
                raise ValueError(f"{layer!r} must read the images: put it first in the network")
            if not tensor.shape or min(tensor.shape) < 1:
                raise ValueError(f"{layer!r}: {name} has the shape {tensor.shape}, expected extents of at least 1")
            self.tensors[name] = tensor
        self.nodes.append(Node(layer, inputs, len(self.shapes), shape))
        self.shapes.append(shape)
        return self.nodes[-1].output


class Graph:
    """Computes the nodes forward and backward. `trained` has the names of the layers with parameters to train."""

    def __init__(self, nodes: Sequence[Node], trained: Collection[str]) -> None:
        self.nodes = list(nodes)
        self._values = nodes[-1].output + 1
        self.wanted = [False] * self._values  # by value: is its gradient needed?
        self.need_dx = []  # by node: whether its backward pass must return a gradient
        for node in nodes:
            self.need_dx.append(any(self.wanted[value] for value in node.inputs))
            self.wanted[node.output] = node.layer.name in trained or self.need_dx[-1]

    def forward(self, x: Array, passes: Sequence[Pass], runner: Runner) -> tuple[Array, list[Any]]:
        """The output of the last node, and what each layer has saved."""
        values: list[Any] = [x] * self._values
        saved = []
        for node, call in zip(self.nodes, passes, strict=True):
            inputs = node.inputs
            given: Any = values[inputs[0]] if len(inputs) == 1 else tuple(values[value] for value in inputs)
            values[node.output], kept = runner.forward(node.layer, given, call)
            saved.append(kept)
        return values[-1], saved

    def backward(self, dy: Array, saved: Sequence[Any], passes: Sequence[Pass], runner: Runner) -> None:
        """Fill the gradients of all passes.

        The gradients of a value that is used several times are added in the reverse order of its uses.
        """
        gradients = {self.nodes[-1].output: dy}
        for node, kept, call in zip(reversed(self.nodes), reversed(saved), reversed(passes), strict=True):
            if not self.wanted[node.output]:
                continue
            result: Any = runner.backward(node.layer, gradients.pop(node.output), kept, call)
            if not call.need_dx:
                continue
            for value, dx in zip(node.inputs, result if len(node.inputs) > 1 else (result,), strict=True):
                if value in gradients:
                    gradients[value] += dx
                elif self.wanted[value]:
                    gradients[value] = dx
