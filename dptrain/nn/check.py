"""Checks of layers: the rules for what they return, and their gradients against differences of forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.errors import ModelError
from dptrain.nn.graph import Part
from dptrain.nn.layer import PLAIN, CoupledLayer, Layer, Pass, Runner, read_only, where
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.network import Network
from dptrain.nn.tensor import Tensor, zeros

STEP = 1e-5  # of the central differences; values of `distinct` are further apart than that
RTOL, ATOL = 1e-6, 1e-7


class CheckedRunner(Runner):
    """ModelError for a layer whose passes do not return what they must; inputs cannot be written to.

    `inner` makes the calls.
    """

    def __init__(self, network: Network, inner: Runner = PLAIN) -> None:
        self._inner = inner
        nodes = [*network.evaluation_graph.nodes, *network.graph.nodes]
        self._output_shapes = {node.layer.name: node.shape for node in nodes}  # of a sample
        self._input_shapes: dict[tuple[str, int], list[Shape]] = {}  # by layer and number of samples

    def forward(self, layer: Layer, x: Any, call: Pass) -> Any:
        inputs = [read_only(one) for one in (x if isinstance(x, tuple) else [x])]
        self._input_shapes[layer.name, inputs[0].shape[-2]] = [one.shape for one in inputs]
        given: Any = tuple(inputs) if isinstance(x, tuple) else inputs[0]
        result: Any = self._inner.forward(layer, given, call)
        if not isinstance(result, tuple) or len(result) != 2:
            raise _broken(layer, "forward returned", result, "two values: the output, and what backward needs")
        shape = array_shape(self._output_shapes[layer.name], inputs[0].shape[-2])
        if not _has_shape(result[0], shape):
            raise _broken(layer, "the output of forward is", result[0], f"an array of shape {shape}, as bind returned")
        return result

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Any:
        result: Any = self._inner.backward(layer, dy, saved, call)
        shapes = self._input_shapes[layer.name, dy.shape[-2]]
        parts = result if len(shapes) > 1 else (result,)
        fits = isinstance(parts, tuple) and len(parts) == len(shapes) and all(map(_has_shape, parts, shapes))
        if call.need_dx and not fits:
            expected = f"the gradient of its input, an array of shape {', '.join(map(str, shapes))}"
            raise _broken(layer, "backward returned", result, expected)
        return result

    def collect(self, layer: CoupledLayer, x: Array, call: Pass) -> Any:
        self._input_shapes[layer.name, x.shape[-2]] = [x.shape]  # `backward` gets these blocks, not those of `forward`
        return self._inner.collect(layer, read_only(x), call)

    def collect_backward(self, layer: CoupledLayer, dy: Array, x: Array, saved: Any, out: Array, call: Pass) -> Any:
        return self._inner.collect_backward(layer, dy, x, saved, out, call)

    def complete(self, layer: Layer) -> None:
        self._inner.complete(layer)


def _broken(layer: Layer, what: str, found: object, expected: str) -> ModelError:
    return ModelError(f"{where(layer)}: {what} {kind_of(found)}, expected {expected}")


def kind_of(value: object) -> str:
    """A value's type, and an array's shape, for error messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _has_shape(value: object, shape: Shape) -> bool:
    return isinstance(value, np.ndarray) and value.shape == shape and value.dtype.kind in "fiub"


class _Input(Layer):
    """Its output is a parameter, so that the network gives the gradient of the input like that of a parameter."""

    kind = "input"

    def __init__(self, shape: Shape) -> None:
        self.shape = shape  # (..., N, C)

    def tensors(self) -> list[Tensor]:
        return [Tensor("x", self.shape, zeros)]

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        return call.parameters["x"], None

    def backward(self, dy: Array, saved: None, call: Pass) -> None:
        call.gradients["x"][...] = dy


def check_layer(layer: Part, input_shape: Shape, samples: int = 3, seed: int = 0) -> None:
    """AssertionError unless a layer's gradients, of its input and parameters, are the derivatives of its output.

    layer          a layer, or several as a network takes them, such as a `Residual`
    input_shape    of one sample: (C, H, W) or (F,)

    Everything is computed in float64 and training mode, for random parameters and inputs; draws are the same each time.
    Also checked: the shapes that are returned, that a second pass in used memory gives equal bits, and that an
    evaluation runs.
    """
    generator = np.random.default_rng(seed)
    shape = array_shape(input_shape, samples)
    network = Network([_Input(shape), layer, Flatten()], input_shape, fused=False)
    parameters = generator.normal(size=network.layout.size)
    views = network.layout.views(parameters)
    views["input1.x"][...] = distinct(shape, seed)
    buffers = np.abs(generator.normal(size=network.buffer_layout.size)) + 0.5  # a variance, for example, is positive
    dy = generator.normal(size=(samples, network.classes))
    workspace, runner = Workspace(np.float64), CheckedRunner(network)

    def computed(backward: bool = True) -> dict[str, Array]:
        """The output, the gradients and the statistics, by name."""
        gradient, statistics = np.zeros_like(parameters), np.zeros_like(buffers)
        prepared = network.prepare(parameters, buffers, workspace, runner)
        passes = network.passes(prepared, workspace, gradient, statistics, Draws(seed))
        y, saved = network.graph.forward(views["input1.x"], passes, runner)
        results = {"the output": y.copy(), **network.layout.views(gradient), **network.buffer_layout.views(statistics)}
        if backward:
            network.graph.backward(dy.copy(), saved, passes, runner)
        return results

    def loss() -> float:
        return float((computed(backward=False)["the output"] * dy).sum())

    first, second = computed(), computed()
    for name, values in first.items():
        if not np.array_equal(values, second[name], equal_nan=True):
            raise AssertionError(f"{layer!r}: the result for {name} is not the same when computed twice")
    network.predict(network.prepare(parameters, buffers, workspace), views["input1.x"], workspace, runner)
    for name, values in views.items():
        if not network.tensors[name].trained:
            continue
        found, expected = first[name], central_difference(loss, values)
        wrong = ~np.isclose(found, expected, rtol=RTOL, atol=ATOL)
        if wrong.any():
            position = tuple(int(index) for index in np.argwhere(wrong)[0])
            raise AssertionError(
                f"{layer!r}: the gradient of {'its input' if name == 'input1.x' else name} is {found[position]:.9g} at "
                f"{position}, but the numerical derivative is {expected[position]:.9g}; {np.count_nonzero(wrong)} of "
                f"{wrong.size} values differ"
            )


def distinct(shape: Shape, seed: int) -> Array:
    """float64 values in random order, none within 1e-3 of another or of 0: no kink lies within a difference."""
    count = math.prod(shape)
    values = (np.arange(count) - count // 2 + 0.5) / max(count, 500) * 4 + 0.003
    return np.random.default_rng(seed).permutation(values).reshape(shape)


def central_difference(function: Callable[[], float], values: Array) -> Array:
    """The gradient of function() with respect to `values`, which it reads; they are restored."""
    gradient = np.empty_like(values)
    for position in np.ndindex(values.shape):
        kept = values[position]
        values[position] = kept + STEP
        above = function()
        values[position] = kept - STEP
        below = function()
        values[position] = kept
        gradient[position] = (above - below) / (2 * STEP)
    return gradient
