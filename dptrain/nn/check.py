"""The gradient checker for all layers: backward passes against differences of forward passes, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn.graph import Builder, Graph, Part
from dptrain.nn.passes import Pass, Views
from dptrain.nn.runner import PLAIN

STEP = 1e-5  # of the central differences; values of `distinct` are further apart than that
RTOL, ATOL = 1e-6, 1e-7


def check_layer(layer: Part, input_shape: Shape, samples: int = 3, seed: int = 0) -> None:
    """AssertionError unless a layer's gradients, of its input and parameters, are the derivatives of its output.

    layer          a layer, or several as a network takes them, such as a `Residual`
    input_shape    of one sample: (C, H, W) or (F,)

    Everything is computed in float64 and training mode, for random parameters and inputs. A layer that draws gets equal
    draws each time. Also checked: the shapes that are returned, that a second pass in used memory gives equal bits, and
    that an evaluation runs.
    """
    builder, generator = Builder(input_shape), np.random.default_rng(seed)
    builder.add(layer, 0)
    graph = Graph(builder.nodes, {name.rsplit(".", 1)[0] for name in builder.tensors}, of_input=True)
    tensors = {name: generator.normal(size=tensor.shape) for name, tensor in builder.tensors.items()}
    kinds = {name: tensor.kind for name, tensor in builder.tensors.items()}
    for name, kind in kinds.items():
        if kind == "buffer":
            tensors[name] = np.abs(tensors[name]) + 0.5  # a variance, for example, is positive
    x = distinct(array_shape(input_shape, samples), seed)
    dy = generator.normal(size=array_shape(builder.shapes[-1], samples))
    workspace = Workspace(np.float64)

    def passes(arrays: Mapping[str, Array], training: bool = True) -> list[Pass]:
        def views(name: str, kind: str, values: Mapping[str, Array]) -> Views:
            names = [full for full in kinds if kinds[full] == kind and full.rsplit(".", 1)[0] == name]
            return Views({full.rsplit(".", 1)[1]: values[full] for full in names})

        return [
            Pass(
                parameters=views(node.layer.name, "parameter", tensors),
                buffers=views(node.layer.name, "buffer", tensors),
                gradients=views(node.layer.name, "parameter", arrays),
                statistics=views(node.layer.name, "buffer", arrays),
                workspace=workspace,
                training=training,
                draws=Draws(seed),
                layer_number=node.number,
            )
            for node in graph.nodes
        ]

    def computed() -> dict[str, Array]:
        arrays = {name: np.zeros_like(values) for name, values in tensors.items()}
        contexts = passes(arrays)
        y, saved = graph.forward(x, contexts, PLAIN)
        output = y.copy()
        dx = graph.backward(dy.copy(), saved, contexts, PLAIN)
        assert dx is not None
        return {**arrays, "output": output, "input": dx.copy()}

    def weighted_output() -> float:
        return float((graph.forward(x, passes(tensors_like(tensors)), PLAIN)[0] * dy).sum())

    first, second = computed(), computed()
    for name, values in first.items():
        if not np.array_equal(values, second[name], equal_nan=True):
            raise AssertionError(f"{layer!r}: {_called(name)} is not the same when computed twice")
    graph.forward(x, passes(tensors_like(tensors), training=False), PLAIN)
    trained = {name: values for name, values in tensors.items() if builder.tensors[name].trained}
    for name, values in {**trained, "input": x}.items():
        _compare(f"{layer!r}: {_called(name)}", first[name], central_difference(weighted_output, values))


def tensors_like(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Zeros of the same shapes."""
    return {name: np.zeros_like(values) for name, values in tensors.items()}


def _called(name: str) -> str:
    return "the output" if name == "output" else f"the gradient of {name if name != 'input' else 'the input'}"


def _compare(what: str, found: Array, expected: Array) -> None:
    wrong = ~np.isclose(found, expected, rtol=RTOL, atol=ATOL)
    if wrong.any():
        position = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what} is {found[position]:.9g} at {position}, but the numerical derivative is {expected[position]:.9g}; "
            f"{np.count_nonzero(wrong)} of {wrong.size} values differ"
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
