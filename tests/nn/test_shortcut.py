"""ZeroPadShortcut against PyTorch, and behind the convolution that it goes around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import training_pass
from selection import examples

from dptrain.nn import Conv2d, Network, Residual, check_layer
from dptrain.nn.layers.global_pool import GlobalAvgPool2d
from dptrain.nn.layers.shortcut import ZeroPadShortcut


def test_backward_is_the_gradient() -> None:
    check_layer(ZeroPadShortcut(5), (3, 4, 5))
    check_layer(ZeroPadShortcut(3, stride=3), (3, 4, 5))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_passes_agree_with_pytorch(stride: int) -> None:
    import torch

    generator = np.random.default_rng(0)
    x = generator.normal(size=(7, 5, 6, 4)).astype(np.float32)
    layer = ZeroPadShortcut(9, stride=stride)
    channels, height, width = layer.bind((4, 7, 5))
    dy = generator.normal(size=(height, width, 6, channels)).astype(np.float32)
    call = training_pass({})
    y, saved = layer.forward(x, call)
    given = torch.tensor(x.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    theirs = torch.nn.functional.pad(given[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, 5))
    theirs.backward(torch.tensor(dy.transpose(2, 3, 0, 1).copy()))
    assert given.grad is not None
    np.testing.assert_array_equal(y, theirs.detach().numpy().transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(layer.backward(dy, saved, call), given.grad.numpy().transpose(2, 3, 0, 1))


@examples(100)
@given(height=st.integers(1, 9), width=st.integers(1, 9), stride=st.integers(1, 4))
def test_it_fits_around_a_convolution_of_the_same_stride(height: int, width: int, stride: int) -> None:
    body = Conv2d(4, 3, stride=stride, padding=1)
    network = Network([Residual(body, ZeroPadShortcut(4, stride=stride)), GlobalAvgPool2d()], (2, height, width))
    assert network.classes == 4


def test_fewer_channels_than_the_input_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ZeroPadShortcut\(3\) gets 4 channels, expected at most 3"):
        ZeroPadShortcut(3).bind((4, 8, 8))
    with pytest.raises(ValueError, match="stride is 0, expected a whole number of at least 1"):
        ZeroPadShortcut(3, stride=0)
