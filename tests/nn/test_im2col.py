import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import random_parameters, training_pass
from selection import examples

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.check import check_layer
from dptrain.nn.convolution.correlation import Geometry
from dptrain.nn.convolution.im2col import Im2col
from dptrain.nn.fused_conv import ConvPoolReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.pool import MaxPool2d

CONV1 = Geometry("conv1", (3, 32, 32), (32, 32, 32), (3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize(("kib", "rows"), [(2048, [16]), (1024, [16]), (512, [8] * 2), (256, [4] * 4), (64, [2] * 8)])
def test_the_size_of_the_cache_decides_how_many_rows_are_computed_at_once(kib: int, rows: list[int]) -> None:
    algorithm = Im2col(CONV1, 2)
    algorithm.set_cache(kib)
    assert [strip.stop - strip.start for strip in algorithm.strips(8)] == rows


@given(height=st.integers(1, 40), samples=st.integers(0, 9), kib=st.integers(1, 4000), q=st.integers(1, 2))
def test_strips_cover_the_map_once(height: int, samples: int, kib: int, q: int) -> None:
    algorithm = Im2col(CONV1._replace(output_shape=(32, q * height, 32)), q)
    algorithm.set_cache(kib)
    strips = algorithm.strips(samples)
    assert [row for strip in strips for row in range(strip.start, strip.stop)] == list(range(height))


@examples(40)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    height=st.integers(5, 12),
    samples=st.integers(1, 4),
    pooled=st.booleans(),
    need_dx=st.booleans(),
    seed=st.integers(0, 99),
)
def test_strips_give_the_results_of_the_whole_map(
    kernel: int, stride: int, padding: int, height: int, samples: int, pooled: bool, need_dx: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(height, 7, samples, 3)).astype(np.float32)
    results: list[list[Array]] = []
    for kib in (1, 1024):
        conv = Conv2d(5, kernel, stride=stride, padding=padding, algorithm="im2col")
        conv.name = "conv1"
        pool = MaxPool2d(2)
        shape = pool.bind(conv.bind((3, height, 7))) if pooled else conv.bind((3, height, 7))
        layer = ConvPoolReLU(conv, pool) if pooled else conv
        layer.set_cache(kib)
        generator = np.random.default_rng(seed)
        call = training_pass(random_parameters(conv, generator), need_dx=need_dx)
        dy = generator.normal(size=array_shape(shape, samples)).astype(np.float32)
        y, saved = layer.forward(x, call)
        dx = layer.backward(dy, saved, call)
        results.append([y, *call.gradients.values(), *([] if dx is None else [dx])])
    for strips, whole in zip(*results, strict=True):
        np.testing.assert_allclose(strips, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_backward_in_strips_is_the_gradient(stride: int) -> None:
    class InStrips(Conv2d):
        """With a cache for one row."""

        def bind(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
            shape = super().bind(input_shape)
            self.correlation.cache = 1
            return shape

    check_layer(InStrips(3, 3, stride=stride, padding=1, algorithm="im2col"), (2, 7, 6), 2)


def test_an_infinite_gradient_does_not_stay_in_the_memory_of_the_columns() -> None:
    layer = Conv2d(2, 3, padding=1, algorithm="im2col")  # 9 rows of columns, and 3 rows of zeros
    layer.name = "conv1"
    layer.bind((1, 4, 4))
    call = training_pass(random_parameters(layer, np.random.default_rng(0)), Workspace())
    x = np.ones((4, 4, 2, 1), np.float32)
    first, saved = layer.forward(x, call)
    expected = first.copy()
    with np.errstate(invalid="ignore"):
        layer.backward(np.full_like(first, np.inf), saved, call)
    np.testing.assert_array_equal(layer.forward(x, call)[0], expected)
