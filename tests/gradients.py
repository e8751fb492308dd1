"""One gradient checker judges every layer: central differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from networks import random_parameters, training_pass

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer

STEP = 1e-4  # of the central differences; values of `distinct` lie further apart than that


def distinct(shape: tuple[int, ...], seed: int) -> Array:
    """float64 values in random order, none within 1e-3 of another or of 0: no kink lies within a difference."""
    count = math.prod(shape)
    values = (np.arange(count) - count // 2 + 0.5) / max(count, 500) * 4 + 0.003
    return np.random.default_rng(seed).permutation(values).reshape(shape)


def central_difference(function: Callable[[], float], values: Array) -> Array:
    """The gradient of function() with respect to `values`, which it reads and which are put back."""
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


def check_layer(layer: Layer, input_shape: tuple[int, ...], samples: int, seed: int = 0) -> None:
    """Hold a layer's backward pass, for inputs and parameters, to differences of its forward pass."""
    layer.name = "layer"
    output_shape = layer.bind(input_shape)
    generator = np.random.default_rng(seed)
    x = distinct(array_shape(input_shape, samples), seed)
    parameters = random_parameters(layer, generator, np.float64)
    dy = generator.normal(size=array_shape(output_shape, samples))
    workspace = Workspace(np.float64)

    def weighted_output() -> float:
        y, _ = layer.forward(x.copy(), training_pass(parameters, workspace))
        assert y.shape == dy.shape
        return float((y * dy).sum())

    expected = {name: central_difference(weighted_output, values) for name, values in parameters.items()}
    expected_dx = central_difference(weighted_output, x)
    for _ in range(2):  # the second time in buffers that are full of the first
        call = training_pass(parameters, workspace)
        _, saved = layer.forward(x.copy(), call)
        dx = layer.backward(dy.copy(), saved, call)
        assert dx is not None
        np.testing.assert_allclose(dx, expected_dx, rtol=1e-6, atol=1e-7)
        for name in parameters:
            np.testing.assert_allclose(call.gradients[name], expected[name], rtol=1e-6, atol=1e-7, err_msg=name)
