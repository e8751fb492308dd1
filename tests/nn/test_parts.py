"""A microbatch in parts (`loss_and_grad` with `parts`): a layer that couples samples couples those of one part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Layer, Linear, Network, Pass, ReLU
from dptrain.nn.network import divided

SHAPE, SAMPLES = (2, 6, 6), 23
DRAWS = Draws(1, 2, 3, 40)


class Centred(Layer):
    """x less its mean over the samples."""

    kind = "centred"
    couples_samples = True

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        return x - x.mean(axis=-2, keepdims=True), None

    def backward(self, dy: Array, saved: None, call: Pass) -> Array:
        dx: Array = dy - dy.mean(axis=-2, keepdims=True)
        return dx


def compute(network: Network, rows: slice, **options: Any) -> tuple[Array, Array, float, int]:
    """Gradient, statistics, loss and correct answers of some rows of the microbatch."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=array_shape(SHAPE, SAMPLES)).astype(np.float32)[..., rows, :]
    labels = generator.integers(0, 3, SAMPLES)[rows]
    gradient, statistics = (np.full(one.size, np.nan, np.float32) for one in (network.layout, network.buffer_layout))
    prepared = ready(network, network.initial(0)["parameters"])
    options = {"statistics": statistics, "draws": DRAWS.after(rows.start or 0), **options}
    outcome = network.loss_and_grad(prepared, images, labels, gradient, Workspace(), **options)
    return gradient, statistics, outcome.loss_sum, outcome.correct


@pytest.mark.parametrize(
    "layers", [[Conv2d, BatchNorm2d, ReLU, Dropout, Conv2d, BatchNorm2d], [Centred], [BatchNorm2d]]
)
@pytest.mark.parametrize("parts", [2, 3, 40])
def test_the_parts_are_added_up(layers: list[Any], parts: int) -> None:
    network = Network([*(one(4) if one is Conv2d else one() for one in layers), Flatten(), Linear(3)], SHAPE)
    found = compute(network, slice(SAMPLES), parts=parts)
    expected = [compute(network, rows) for rows in divided(SAMPLES, parts)]
    for values, *of_parts in zip(found, *expected, strict=True):
        np.testing.assert_allclose(np.array(values), np.sum(of_parts, axis=0), rtol=1e-5, atol=1e-5)
    assert abs(found[0] - compute(network, slice(SAMPLES))[0]).max() > 1e-3  # another unit of the coupling


def test_parts_change_no_bit_of_a_network_that_couples_no_samples() -> None:
    network = Network([Conv2d(4), ReLU(), Dropout(0.4), Flatten(), Linear(3)], SHAPE)
    for whole, parts in zip(compute(network, slice(SAMPLES)), compute(network, slice(SAMPLES), parts=3), strict=True):
        np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize(
    ("samples", "parts", "expected"), [(7, 3, [(0, 2), (2, 4), (4, 7)]), (2, 3, [(0, 1), (1, 2)]), (0, 2, [])]
)
def test_parts_differ_by_at_most_one_sample(samples: int, parts: int, expected: list[tuple[int, int]]) -> None:
    assert [(one.start, one.stop) for one in divided(samples, parts)] == expected
