import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_parameters, training_pass

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.cost import DENSE
from dptrain.nn.convolution.winograd import transforms
from dptrain.nn.layers.conv import Conv2d

WINOGRAD = ("winograd2", "winograd4")


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_filter_exactly(m: int) -> None:
    """y[i] = sum of g[k] d[i + k] as an identity of bilinear forms, in exact arithmetic."""
    exact = [
        [[Fraction(value).limit_denominator(1000) for value in row] for row in matrix.tolist()]
        for matrix in transforms(m)
    ]
    outputs, kernels, pixels = exact
    for i, k, j in itertools.product(range(m), range(3), range(m + 2)):
        coefficient = sum(outputs[i][f] * kernels[f][k] * pixels[f][j] for f in range(m + 2))
        assert coefficient == (j == i + k)


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_of_outputs_and_pixels_are_exact_in_float32(m: int) -> None:
    outputs, _, pixels = transforms(m)
    for matrix in (outputs, pixels):
        assert (matrix == np.round(matrix)).all()


def run(algorithm: str, x: Array, weight: Array, dy: Array, padding: int, dtype: type) -> tuple[Array, Array, Array]:
    """Output and both gradients of a convolution, computed in `dtype`."""
    layer = Conv2d(len(weight), 3, padding=padding, algorithm=algorithm)
    layer.name = "conv1"
    height, width, _, channels = x.shape
    layer.bind((channels, height, width))
    parameters: dict[str, Array] = {"weight": weight.astype(dtype), "bias": np.zeros(len(weight), dtype)}
    call = training_pass(parameters, Workspace(dtype))
    y, saved = layer.forward(x.astype(dtype), call)
    y = y.copy()
    dx = layer.backward(dy.astype(dtype), saved, call)
    assert dx is not None
    return y, dx, call.gradients["weight"]


@settings(max_examples=50, deadline=None)
@given(
    algorithm=st.sampled_from(WINOGRAD),
    channels=st.integers(1, 4),
    out=st.integers(1, 4),
    padding=st.integers(0, 3),
    height=st.integers(3, 13),
    width=st.integers(3, 13),
    samples=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_winograd_computes_the_same_convolution_as_im2col(
    algorithm: str, channels: int, out: int, padding: int, height: int, width: int, samples: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x, weight = generator.normal(size=(height, width, samples, channels)), generator.normal(size=(out, channels, 3, 3))
    dy = generator.normal(size=(height + 2 * padding - 2, width + 2 * padding - 2, samples, out))
    for found, expected in zip(
        run(algorithm, x, weight, dy, padding, np.float64),
        run("im2col", x, weight, dy, padding, np.float64),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("algorithm", "most"), [("im2col", 1e-6), ("winograd2", 1e-6), ("winograd4", 5e-6)])
@pytest.mark.parametrize("channels", [32, 256])
def test_float32_is_as_accurate_as_stated(algorithm: str, most: float, channels: int) -> None:
    """Root-mean-square error over the root-mean-square value, against im2col in float64."""
    generator = np.random.default_rng(channels)

    def normal(*shape: int) -> Array:
        return generator.normal(size=shape).astype(np.float32)

    x, weight, dy = normal(16, 16, 4, channels), normal(64, channels, 3, 3), normal(16, 16, 4, 64)
    exact = run("im2col", x, weight, dy, 1, np.float64)
    for found, expected in zip(run(algorithm, x, weight, dy, 1, np.float32), exact, strict=True):
        error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
        assert error < most


@pytest.mark.parametrize("algorithm", DENSE)
def test_a_smaller_microbatch_after_a_larger_one_is_computed_correctly(algorithm: str) -> None:
    """Borders and padding beyond the output stay zero in memory that another size has used."""
    layer = Conv2d(3, 3, padding=1, algorithm=algorithm)
    layer.name = "conv1"
    layer.bind((2, 7, 5))
    generator = np.random.default_rng(0)
    parameters = random_parameters(layer, generator, np.float64)
    used = Workspace(np.float64)
    for samples in (4, 1, 4, 3):
        x, dy = generator.normal(size=(7, 5, samples, 2)), generator.normal(size=(7, 5, samples, 3))
        results = []
        for workspace in (used, Workspace(np.float64)):
            call = training_pass(parameters, workspace)
            y, saved = layer.forward(x, call)
            y = y.copy()
            dx = layer.backward(dy.copy(), saved, call)
            results.append((y, dx, call.gradients["weight"], call.gradients["bias"]))
        for found, expected in zip(*results, strict=True):
            np.testing.assert_array_equal(found, expected)
