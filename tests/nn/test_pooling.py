import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import training_pass
from selection import examples

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.check import check_layer
from dptrain.nn.layers.pool import MaxPool2d

Pair = tuple[int, int]
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))


def by_definition(x: Array, dy: Array, kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[Array, Array]:
    """Maxima and dx; of equal values the first in row-major order gets the gradient."""
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for i, j, n, c in itertools.product(*map(range, dy.shape)):
        top, left = i * stride[0], j * stride[1]
        window = x[top : top + kernel[0], left : left + kernel[1], n, c]
        y[i, j, n, c] = window.max()
        row, column = np.unravel_index(window.argmax(), window.shape)  # argmax: the first
        dx[top + row, left + column, n, c] += dy[i, j, n, c]
    return y, dx


@examples(60)
@given(
    channels=st.integers(1, 2),
    kernel=SIZES,
    stride=SIZES,
    more=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    samples=st.integers(1, 3),
    values=st.sampled_from([2, 3, 1000]),
    seed=st.integers(0, 99),
)
def test_maxima_and_gradients_are_correct_among_equal_values(
    channels: int, kernel: Pair, stride: Pair, more: Pair, samples: int, values: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (channels, kernel[0] + more[0], kernel[1] + more[1])
    x = generator.integers(0, values, array_shape(shape, samples)).astype(np.float64)
    layer = MaxPool2d(kernel, stride=stride)
    layer.name = "pool1"
    dy = generator.integers(1, 9, array_shape(layer.bind(shape), samples)).astype(np.float64)
    expected_y, expected_dx = by_definition(x, dy, kernel, stride)
    workspace = Workspace(np.float64)
    for _ in range(2):
        y, saved = layer.forward(x, training_pass({}, workspace))
        assert np.array_equal(y, expected_y)
        assert np.array_equal(layer.backward(dy.copy(), saved, training_pass({}, workspace)), expected_dx)


@examples(15)
@given(kernel=SIZES, stride=SIZES, more=st.tuples(st.integers(0, 4), st.integers(0, 4)), samples=st.integers(1, 2))
def test_backward_is_the_gradient(kernel: Pair, stride: Pair, more: Pair, samples: int) -> None:
    check_layer(MaxPool2d(kernel, stride=stride), (2, kernel[0] + more[0], kernel[1] + more[1]), samples)


def test_the_stride_is_the_kernel_unless_given() -> None:
    assert MaxPool2d((2, 3)).stride == (2, 3)
    assert MaxPool2d(3).bind((1, 10, 10)) == (1, 3, 3)
    assert MaxPool2d(3, stride=1).bind((1, 10, 10)) == (1, 8, 8)


def test_unsuitable_input_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="needs feature maps"):
        MaxPool2d(2).bind((12,))
    with pytest.raises(ValueError, match=r"an input of \(4, 1\) is smaller than the kernel of \(2, 2\)"):
        MaxPool2d(2).bind((3, 4, 1))


@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 2), (1, 3)), ((2, 3), (3, 1))])
def test_maxima_and_gradients_agree_with_pytorch(kernel: Pair, stride: Pair) -> None:
    """Also among equal values: the first of a window gets the gradient."""
    import torch

    generator = np.random.default_rng(0)
    x = generator.integers(0, 5, (9, 8, 3, 2)).astype(np.float32)
    layer = MaxPool2d(kernel, stride=stride)
    layer.name = "pool1"
    dy = generator.normal(size=array_shape(layer.bind((2, 9, 8)), 3)).astype(np.float32)
    given = torch.tensor(x.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(given, kernel, stride)
    expected.backward(torch.tensor(dy.transpose(2, 3, 0, 1).copy()))
    y, saved = layer.forward(x, training_pass({}))
    np.testing.assert_array_equal(y.transpose(2, 3, 0, 1), expected.detach().numpy())
    assert given.grad is not None
    dx = layer.backward(dy.copy(), saved, training_pass({}))
    np.testing.assert_allclose(dx.transpose(2, 3, 0, 1), given.grad.numpy(), rtol=1e-6, atol=1e-6)
