import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import random_parameters, training_pass
from selection import examples

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Correlation, Geometry, zeros_beyond
from dptrain.nn.convolution.cost import DENSE
from dptrain.nn.convolution.im2col import Im2col
from dptrain.nn.convolution.tiles import Tiles, tilings
from dptrain.nn.convolution.winograd import Winograd, WinogradByTile
from dptrain.nn.layers.conv import Conv2d

MOST = {2: 1e-6, 3: 1e-6, 4: 2e-6, 5: 4e-6, 6: 8e-6}  # relative error by extent of the tiles


def passes(algorithm: Correlation, x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """The sums (H, W, N, O) and both gradients, for dy of the same shape."""
    call = training_pass({"weight": weight}, Workspace(x.dtype))
    kernels = algorithm.prepare(weight, call.workspace)
    image = np.empty((*algorithm.extent, *dy.shape[2:]), x.dtype)
    dimage = zeros_beyond(dy, algorithm.extent, "conv1", call.workspace)
    q, (height, width) = algorithm.q, algorithm.extent
    windows, dwindows = (
        one.reshape(height // q, q, width // q, q, *dy.shape[2:]).transpose(1, 3, 0, 2, 4, 5) for one in (image, dimage)
    )

    def take(rows: slice, sums: Array) -> None:
        for place in np.ndindex(q, q):
            algorithm.in_order_of_sums(windows[place])[rows] = sums[place]

    def give(rows: slice, dsums: Array) -> None:
        for place in np.ndindex(q, q):
            dsums[place] = algorithm.in_order_of_sums(dwindows[place])[rows]

    saved = algorithm.forward_strips(x, kernels, call.workspace, take)
    dx = algorithm.backward_strips(give, saved, kernels, call)
    assert dx is not None
    return image[: len(dy), : dy.shape[1]], dx, call.gradients["weight"]


@examples(100)
@given(
    data=st.data(),
    q=st.integers(1, 2),
    channels=st.integers(1, 3),
    out=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    height=st.integers(4, 17),
    width=st.integers(4, 12),
    samples=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_all_tiles_compute_the_same_convolution_as_im2col(
    data: st.DataObject,
    q: int,
    channels: int,
    out: int,
    padding: tuple[int, int],
    height: int,
    width: int,
    samples: int,
    seed: int,
) -> None:
    output_shape = (out, height + 2 * padding[0] - 2, width + 2 * padding[1] - 2)
    geometry = Geometry("conv1", (channels, height, width), output_shape, (3, 3), (1, 1), padding)
    expected = Im2col(geometry, q)
    rows, columns = (data.draw(st.sampled_from(list(tilings(extent, q, 6)))) for extent in expected.extent)
    orders = [Winograd, WinogradByTile] if WinogradByTile.is_possible(q, rows, columns) else [Winograd]
    generator = np.random.default_rng(seed)
    x, weight = generator.normal(size=(height, width, samples, channels)), generator.normal(size=(out, channels, 3, 3))
    dy = generator.normal(size=(*expected.extent, samples, out))
    for order in orders:
        found = order(geometry, q, rows, columns)
        for one, other in zip(passes(found, x, weight, dy), passes(expected, x, weight, dy), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("m", "most"), MOST.items())
@pytest.mark.parametrize("channels", [32, 256])
def test_float32_is_as_accurate_as_stated(m: int, most: float, channels: int) -> None:
    """Root-mean-square error over the root-mean-square value, against im2col in float64."""
    size, generator = 3 * m, np.random.default_rng(channels)

    def normal(*shape: int) -> Array:
        return generator.normal(size=shape).astype(np.float32)

    x, weight, dy = normal(size, size, 2, channels), normal(32, channels, 3, 3), normal(size, size, 2, 32)
    geometry = Geometry("conv1", (channels, size, size), (32, size, size), (3, 3), (1, 1), (1, 1))
    tiles = (Tiles(m, 3, 0),)
    exact = passes(Im2col(geometry, 1), *(one.astype(np.float64) for one in (x, weight, dy)))
    for found, expected in zip(passes(Winograd(geometry, 1, tiles, tiles), x, weight, dy), exact, strict=True):
        assert found.dtype == np.float32
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < most


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
