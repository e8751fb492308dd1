"""Networks as graphs: parts that are composed of layers, compiled to nodes in the order of computation.

Values are numbered: 0 is the network's input, and each node's output has a number of its own.
"""

from __future__ import annotations

import re
import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array
from dptrain.errors import ModelError
from dptrain.nn.layer import Layer
from dptrain.nn.layers.add import Add
from dptrain.nn.passes import Pass, read_only
from dptrain.nn.runner import Runner
from dptrain.nn.tensor import Tensor

Part = Union[Layer, "Composite", Sequence["Part"]]  # a sequence of parts is applied one after the other


@dataclass(frozen=True)
class Node:
    """A layer at its place: the numbers and the sample shapes of the values it reads and of the one it makes."""

    layer: Layer
    number: int  # of the layer in the network
    inputs: tuple[int, ...]
    output: int
    input_shapes: tuple[Shape, ...]
    shape: Shape


class Composite(ABC):
    """A part of a network that consists of other parts."""

    @abstractmethod
    def connect(self, builder: Builder, value: int) -> int:
        """Add the parts to the graph, reading `value`; returns the number of the output."""


class Sequential(Composite):
    """Parts applied one after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def connect(self, builder: Builder, value: int) -> int:
        return builder.add(self.parts, value)


class Residual(Composite):
    """body(x) + shortcut(x); without a shortcut body(x) + x (He et al. 2016)."""

    def __init__(self, body: Part, shortcut: Part = ()) -> None:
        self.body, self.shortcut = body, shortcut

    def connect(self, builder: Builder, value: int) -> int:
        return builder.add(Add(), builder.add(self.body, value), builder.add(self.shortcut, value))


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
        if isinstance(part, Composite):
            return part.connect(self, value)
        if not isinstance(part, list | tuple):
            raise TypeError(f"the network has {reprlib.repr(part)} in it, expected layers, Sequential or Residual")
        for one in part:
            value = self.add(one, value)
        return value

    def _add_layer(self, layer: Layer, inputs: tuple[int, ...]) -> int:
        if any(node.layer is layer for node in self.nodes):
            raise ValueError(f"the layer object {layer!r} is in the network twice; make a new one for each place")
        if not re.fullmatch(r"[A-Za-z_]*[A-Za-z_]", layer.kind):
            raise ValueError(
                f"{layer!r} has the kind {layer.kind!r}, expected letters: layers are named by kind and number"
            )
        layer._frozen = False
        self._numbers[layer.kind] += 1
        layer.name = f"{layer.kind}{self._numbers[layer.kind]}"
        shapes = tuple(self.shapes[value] for value in inputs)
        bind: Any = layer.bind
        shape = bind(shapes[0] if len(shapes) == 1 else shapes)
        if not isinstance(shape, tuple) or not shape or not all(isinstance(one, int) and one > 0 for one in shape):
            raise ModelError(f"{where(layer)}: bind returned {shape!r}, expected the shape of an output sample")
        self.tensors |= _tensors_of(layer)
        layer._frozen = True
        self.nodes.append(Node(layer, len(self.nodes), inputs, len(self.shapes), shapes, shape))
        self.shapes.append(shape)
        return self.nodes[-1].output


def _tensors_of(layer: Layer) -> dict[str, Tensor]:
    """A layer's tensors by full name; ValueError unless they can be stored in a checkpoint."""
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


class Graph:
    """Computes the nodes forward and backward.

    `trained` has the names of the layers with parameters to train; `of_input` asks for the gradient of the input too.
    """

    def __init__(self, nodes: Sequence[Node], trained: Collection[str], *, of_input: bool = False) -> None:
        self.nodes = list(nodes)
        self._wanted = [of_input] + [False] * max(node.output for node in nodes)  # by value: is its gradient needed?
        self.need_dx = []  # by node: whether its backward pass must return a gradient
        for node in nodes:
            self.need_dx.append(any(self._wanted[value] for value in node.inputs))
            self._wanted[node.output] = node.layer.name in trained or self.need_dx[-1]

    def forward(self, x: Array, passes: Sequence[Pass], runner: Runner) -> tuple[Array, list[Any]]:
        """The output of the last node, and what each layer has saved. ModelError for a layer that breaks a rule."""
        samples, saved = x.shape[-2], []
        y, values = x, [read_only(x)] * len(self._wanted)
        for node, call in zip(self.nodes, passes, strict=True):
            first, *more = node.inputs
            given: Any = (values[first], *(values[value] for value in more)) if more else values[first]
            result: Any = runner.forward(node.layer, given, call)
            if not isinstance(result, tuple) or len(result) != 2:
                raise ModelError(
                    f"{where(node.layer)}: forward returned {kind_of(result)}, expected two values: the output, and "
                    "what backward needs (or None)"
                )
            y, kept = result
            if not _is_array(y, node.shape, samples):
                raise ModelError(
                    f"{where(node.layer)}: the output of forward is {kind_of(y)}, expected an array of shape "
                    f"{array_shape(node.shape, samples)}, which follows from the shape {node.shape} that bind returned"
                )
            values[node.output] = read_only(y)
            saved.append(kept)
        return y, saved

    def backward(self, dy: Array, saved: Sequence[Any], passes: Sequence[Pass], runner: Runner) -> Array | None:
        """Fill the gradients of all passes; returns the gradient of the input, if asked for.

        The gradients of a value that is used several times are added in the reverse order of its uses.
        """
        samples = dy.shape[-2]
        gradients = {self.nodes[-1].output: dy}
        for position in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[position]
            if not self._wanted[node.output]:
                continue
            dy = gradients.pop(node.output)
            result: Any = runner.backward(node.layer, dy, saved[position], passes[position])
            if not self.need_dx[position]:
                continue
            parts = result if len(node.inputs) > 1 else (result,)
            if not isinstance(parts, tuple) or not all(
                _is_array(part, shape, samples) for part, shape in zip(parts, node.input_shapes, strict=True)
            ):
                expected = ", ".join(str(array_shape(shape, samples)) for shape in node.input_shapes)
                raise ModelError(
                    f"{where(node.layer)}: backward returned {kind_of(result)}, expected the gradient of its input, an "
                    f"array of shape {expected}"
                )
            for value, part in zip(node.inputs, parts, strict=True):
                if value in gradients:
                    gradients[value] += part
                elif self._wanted[value]:
                    gradients[value] = part
        return gradients.get(0)


def where(layer: Layer) -> str:
    """A layer as error messages call it."""
    return f"layer {layer.name} ({type(layer).__name__})"


def kind_of(value: object) -> str:
    """A value's type, and an array's shape, for error messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _is_array(value: object, sample: Shape, samples: int) -> bool:
    """Whether a value is an array of that many samples."""
    return isinstance(value, np.ndarray) and value.shape == array_shape(sample, samples) and value.dtype.kind in "fiub"
