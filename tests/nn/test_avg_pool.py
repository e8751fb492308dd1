from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import training_pass
from selection import examples

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Workspace
from dptrain.nn.check import check_layer
from dptrain.nn.layers.avg_pool import AvgPool2d

Pair = tuple[int, int]
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))
MORE = st.tuples(st.integers(0, 5), st.integers(0, 5))


@examples(30)
@given(kernel=SIZES, stride=SIZES, more=MORE, samples=st.integers(1, 3), seed=st.integers(0, 99))
def test_means_and_gradients_agree_with_pytorch(
    kernel: Pair, stride: Pair, more: Pair, samples: int, seed: int
) -> None:
    import torch

    generator = np.random.default_rng(seed)
    shape = (2, kernel[0] + more[0], kernel[1] + more[1])
    layer = AvgPool2d(kernel, stride=stride)
    layer.name = "avgpool1"
    x = generator.normal(size=array_shape(shape, samples))
    dy = generator.normal(size=array_shape(layer.bind(shape), samples))
    theirs = torch.tensor(x.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.avg_pool2d(theirs, kernel, stride)
    expected.backward(torch.tensor(dy.transpose(2, 3, 0, 1).copy()))
    assert theirs.grad is not None
    workspace = Workspace(np.float64)
    for _ in range(2):  # in new memory, and in used memory
        y, saved = layer.forward(x, training_pass({}, workspace))
        np.testing.assert_allclose(y.transpose(2, 3, 0, 1), expected.detach().numpy(), rtol=1e-12, atol=1e-14)
        dx = layer.backward(dy.copy(), saved, training_pass({}, workspace))
        np.testing.assert_allclose(dx.transpose(2, 3, 0, 1), theirs.grad.numpy(), rtol=1e-12, atol=1e-14)


@examples(8)
@given(kernel=SIZES, stride=SIZES, more=MORE, samples=st.integers(1, 2))
def test_backward_is_the_gradient(kernel: Pair, stride: Pair, more: Pair, samples: int) -> None:
    check_layer(AvgPool2d(kernel, stride=stride), (2, kernel[0] + more[0], kernel[1] + more[1]), samples)


def test_the_stride_is_the_kernel_unless_given() -> None:
    assert AvgPool2d().bind((1, 10, 10)) == (1, 5, 5)
    assert AvgPool2d((2, 3)).stride == (2, 3)
    assert AvgPool2d(3, stride=1).bind((1, 10, 10)) == (1, 8, 8)


def test_unsuitable_arguments_and_input_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="stride is 0, expected a whole number of at least 1"):
        AvgPool2d(2, stride=0)
    with pytest.raises(ValueError, match="needs feature maps"):
        AvgPool2d(2).bind((12,))
    with pytest.raises(ValueError, match=r"an input of \(4, 1\) is smaller than the kernel of \(2, 2\)"):
        AvgPool2d(2).bind((3, 4, 1))
