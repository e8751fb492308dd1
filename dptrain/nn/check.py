"""The gradient checker for all layers: backward passes against differences of forward passes, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn.graph import Builder, Graph, Node, Part
from dptrain.nn.passes import Pass, Views
from dptrain.nn.runner import PLAIN

STEP = 1e-5  # of the central differences; values of `distinct` are further apart than that
RTOL, ATOL = 1e-6, 1e-7


def check_layer(layer: Part, input_shape: Shape, samples: int = 3, seed: int = 0) -> None:
    """AssertionError unless a layer's gradients, of its input and parameters, are the derivatives of its output.

    layer          a layer, or several as a network takes them, such as a `Residual`
    input_shape    of one sample: (C, H, W) or (F,)

    Everything is computed in float64 and training mode, for random parameters and inputs; draws are the same each time.
    Also checked: the shapes that are returned, that a second pass in used memory gives equal bits, and that an
    evaluation runs.
    """
    builder, generator = Builder(input_shape), np.random.default_rng(seed)
    builder.add(layer, 0)
    owners = {name: name.rsplit(".", 1) for name in builder.tensors}
    graph = Graph(builder.nodes, {owner for owner, _ in owners.values()}, of_input=True)
    tensors = {name: generator.normal(size=tensor.shape) for name, tensor in builder.tensors.items()}
    buffers = {name for name, tensor in builder.tensors.items() if tensor.kind == "buffer"}
    for name in buffers:
        tensors[name] = np.abs(tensors[name]) + 0.5  # a variance, for example, is positive
    x = distinct(array_shape(input_shape, samples), seed)
    dy = generator.normal(size=array_shape(builder.shapes[-1], samples))
    workspace = Workspace(np.float64)

    def forward(training: bool) -> tuple[Array, list[Any], list[Pass], dict[str, Array]]:
        """The output, what the layers saved, the contexts, and gradients and statistics by full name."""
        written = {name: np.zeros_like(values) for name, values in tensors.items()}

        def views(node: Node, arrays: dict[str, Array], of_buffers: bool) -> Views:
            mine = {name: short for name, (owner, short) in owners.items() if owner == node.layer.name}
            return Views({short: arrays[name] for name, short in mine.items() if (name in buffers) == of_buffers})

        passes = [
            Pass(
                parameters=views(node, tensors, of_buffers=False),
                buffers=views(node, tensors, of_buffers=True),
                workspace=workspace,
                training=training,
                gradients=views(node, written, of_buffers=False),
                statistics=views(node, written, of_buffers=True),
                draws=Draws(seed),
                layer_number=node.number,
            )
            for node in graph.nodes
        ]
        return *graph.forward(x, passes, PLAIN), passes, written

    def computed() -> dict[str, Array]:
        y, saved, passes, written = forward(training=True)
        output = y.copy()
        dx = graph.backward(dy.copy(), saved, passes, PLAIN)
        assert dx is not None
        return {**written, "output": output, "input": dx.copy()}

    first, second = computed(), computed()
    for name, values in first.items():
        if not np.array_equal(values, second[name], equal_nan=True):
            raise AssertionError(f"{layer!r}: the result for {name} is not the same when computed twice")
    forward(training=False)
    trained = {name: values for name, values in tensors.items() if builder.tensors[name].trained}
    for name, values in {**trained, "input": x}.items():
        expected = central_difference(lambda: float((forward(training=True)[0] * dy).sum()), values)
        _compare(f"{layer!r}: the gradient of {name}", first[name], expected)


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
