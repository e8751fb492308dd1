import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from networks import random_parameters, training_pass
from selection import examples

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.check import check_layer
from dptrain.nn.convolution.cost import DENSE
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.network import Network
from dptrain.nn.zoo.airbench import airbench

Pair = tuple[int, int]
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3))


def by_definition(x: Array, weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """The sum that defines a convolution, one term after the other, in float64."""
    (ph, pw), (sh, sw) = padding, stride
    padded = np.pad(x.astype(np.float64), ((ph, ph), (pw, pw), (0, 0), (0, 0)))
    out_channels, channels, kh, kw = weight.shape
    height, width = (padded.shape[0] - kh) // sh + 1, (padded.shape[1] - kw) // sw + 1
    y = np.zeros((height, width, x.shape[2], out_channels))
    for o, i, j in itertools.product(range(out_channels), range(height), range(width)):
        y[i, j, :, o] = bias[o]
        for c, a, b in itertools.product(range(channels), range(kh), range(kw)):
            y[i, j, :, o] += weight[o, c, a, b] * padded[i * sh + a, j * sw + b, :, c]
    return y


@examples(40)
@given(
    channels=st.integers(1, 3),
    out=st.integers(1, 4),
    kernel=SIZES,
    stride=SIZES,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    samples=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_forward_is_the_sum_that_defines_a_convolution(
    channels: int, out: int, kernel: Pair, stride: Pair, padding: Pair, more: Pair, samples: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    height, width = kernel[0] + more[0], kernel[1] + more[1]
    x = generator.normal(size=(height, width, samples, channels)).astype(np.float32)
    layer = Conv2d(out, kernel, stride=stride, padding=padding)
    layer.name = "conv1"
    shape = layer.bind((channels, height, width))
    parameters = random_parameters(layer, generator)
    y, _ = layer.forward(x, training_pass(parameters))
    assert y.shape == array_shape(shape, samples)
    np.testing.assert_allclose(
        y, by_definition(x, parameters["weight"], parameters["bias"], stride, padding), atol=1e-4
    )


@examples(25)
@given(
    channels=st.integers(1, 2),
    out=st.integers(1, 3),
    kernel=SIZES,
    stride=SIZES,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    samples=st.integers(1, 2),
)
def test_backward_is_the_gradient(
    channels: int, out: int, kernel: Pair, stride: Pair, padding: Pair, more: Pair, samples: int
) -> None:
    layer = Conv2d(out, kernel, stride=stride, padding=padding)
    check_layer(layer, (channels, kernel[0] + more[0], kernel[1] + more[1]), samples)


@pytest.mark.parametrize("algorithm", [*DENSE, "grouped"])
def test_backward_without_bias_is_the_gradient(algorithm: str) -> None:
    layer = Conv2d(3, padding=1, bias=False, algorithm=algorithm)
    check_layer(layer, (2, 5, 6), 2)
    assert [tensor.name for tensor in layer.tensors()] == ["weight"]


PLAIN: dict[str, Any] = {"padding": (0, 0), "more": (4, 3), "bias": True, "dilation": (1, 1), "samples": 2}


@examples(30)
@given(
    channels=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=SIZES,
    stride=SIZES,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    bias=st.booleans(),
    groups=st.integers(1, 3),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    samples=st.integers(1, 3),
)
@example(**PLAIN, channels=3, out=2, kernel=(1, 1), stride=(2, 2), groups=1)  # a product of the pixels
@example(**PLAIN, channels=1, out=1, kernel=(3, 3), stride=(1, 1), groups=3)  # depthwise
def test_passes_agree_with_pytorch(
    channels: int,
    out: int,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    more: Pair,
    bias: bool,
    groups: int,
    dilation: Pair,
    samples: int,
) -> None:
    import torch

    layer = Conv2d(groups * out, kernel, stride=stride, padding=padding, bias=bias, groups=groups, dilation=dilation)
    generator, channels = np.random.default_rng(samples), groups * channels
    extents = tuple(1 + d * (k - 1) + m for k, m, d in zip(kernel, more, dilation, strict=True))
    layer.name = "conv1"
    layer.bind((channels, *extents))
    parameters = random_parameters(layer, generator, np.float64)
    x = generator.normal(size=(*extents, samples, channels))
    call = training_pass(parameters, Workspace(np.float64))
    y, saved = layer.forward(x, call)
    dy = generator.normal(size=y.shape)

    tensors = {name: torch.tensor(values, requires_grad=True) for name, values in parameters.items()}
    given = torch.tensor(x.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    theirs = torch.nn.functional.conv2d(
        given, tensors["weight"], tensors.get("bias"), stride, padding, dilation, groups
    )
    theirs.backward(torch.tensor(dy.transpose(2, 3, 0, 1).copy()))
    np.testing.assert_allclose(y, theirs.detach().numpy().transpose(2, 3, 0, 1), rtol=1e-9, atol=1e-12)
    dx = layer.backward(dy.copy(), saved, call)
    assert dx is not None
    np.testing.assert_allclose(dx, given.grad.numpy().transpose(2, 3, 0, 1), rtol=1e-9, atol=1e-12)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(call.gradients[name], tensor.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_the_border_stays_zero_when_the_microbatch_changes_size() -> None:
    layer = Conv2d(2, 3, padding=1)
    layer.name = "conv1"
    layer.bind((1, 4, 5))
    parameters = {"weight": np.ones((2, 1, 3, 3), np.float32), "bias": np.zeros(2, np.float32)}
    workspace = Workspace()
    for samples in (6, 2, 6, 3):
        x = np.ones((4, 5, samples, 1), np.float32)
        y, _ = layer.forward(x, training_pass(parameters, workspace))
        assert (y[0, 0] == 4).all()
        assert (y[1, 1] == 9).all()


def test_the_first_layer_computes_no_input_gradient() -> None:
    layer = Conv2d(2, 3)
    layer.name = "conv1"
    layer.bind((1, 4, 4))
    parameters = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in layer.tensors()}
    call = training_pass(parameters, need_dx=False)
    y, saved = layer.forward(np.ones((4, 4, 2, 1), np.float32), call)
    assert layer.backward(np.ones_like(y), saved, call) is None
    assert call.gradients["weight"].tolist() == np.full((2, 1, 3, 3), 2 * 2 * 2).tolist()


def test_tiles_of_airbench_need_fewer_multiplications_than_tiles_of_4() -> None:
    network = Network(airbench((3, 32, 32), 10), (3, 32, 32))
    chosen = {name: tuning.get("algorithm") for name, tuning in network.tuning().items() if name.startswith("conv")}
    expected = ["6*5", "3*5", "4*4 by 2*5+1*4", "2*4", "2*3", "1*3"]
    assert list(chosen.values()) == [f"winograd {tiles}" for tiles in expected]

    def places(tiles: str) -> list[int]:
        """Of the products along each axis."""
        axes = [[one.split("*") for one in axis.split("+")] for axis in tiles.split(" by ")]
        return [sum(int(number) * (int(m) + 2) for number, m in axis) for axis in axes] * (3 - len(axes))

    channels = [24 * 64, 64 * 64, 64 * 256, 256 * 256, 256 * 256, 256 * 256]
    products = sum(math.prod(places(tiles)) * each for tiles, each in zip(expected, channels, strict=True))
    of_4 = sum((6 * -(-size // 4)) ** 2 * each for size, each in zip([31, 15, 15, 7, 7, 3], channels, strict=True))
    assert of_4 / products > 1.2


@pytest.mark.parametrize(
    ("shape", "out", "options", "chosen"),
    [
        ((3, 32, 32), 32, {"padding": 1}, "im2col"),  # three channels: transforms would cost more than they save
        ((32, 16, 16), 64, {"padding": 1}, "winograd 4*4"),
        ((256, 8, 8), 256, {"padding": 1}, "winograd 2*4"),
        ((8, 16, 16), 8, {"padding": 1}, "winograd 4*4"),
        ((512, 2, 2), 512, {"padding": 1}, "winograd 1*2"),  # most of a 4 x 4 tile would be discarded
        ((64, 16, 16), 64, {"kernel_size": 5}, "im2col"),
        ((64, 16, 16), 64, {"stride": 2}, "im2col"),
        ((64, 16, 16), 64, {"kernel_size": 1, "stride": 2}, "pointwise"),
        ((64, 16, 16), 64, {"kernel_size": 1, "padding": 1}, "im2col"),
        ((64, 16, 16), 64, {"groups": 64}, "depthwise"),
        ((64, 16, 16), 128, {"groups": 64}, "grouped"),
        ((64, 16, 16), 64, {"groups": 2}, "grouped"),
        ((64, 16, 16), 64, {"dilation": 2}, "grouped"),
    ],
)
def test_auto_chooses_by_shape(shape: Shape, out: int, options: dict[str, Any], chosen: str) -> None:
    layer = Conv2d(out, **options)
    layer.bind((2 * shape[0], 16, 16))  # the choice for an earlier network does not count
    layer.bind(shape)
    assert layer.chosen == chosen
    assert layer.tuning() == {"algorithm": chosen}
    assert "algorithm" not in layer.spec()


def test_an_unknown_or_unsuitable_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm is 'fft', expected auto, im2col, winograd2, winograd3, winograd4"):
        Conv2d(3, algorithm="fft")
    unsuitable: list[dict[str, Any]] = [{"stride": 2}, {"kernel_size": 5}, {"groups": 3}, {"dilation": 2}]
    for options in unsuitable:
        with pytest.raises(ValueError, match=r"algorithm is winograd4, expected auto, .*grouped for Conv2d\(3, "):
            Conv2d(3, algorithm="winograd4", **options).bind((3, 9, 9))


def test_unsuitable_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups is 0, expected a whole number of at least 1"):
        Conv2d(3, groups=0)
    for groups in (2, 4):
        with pytest.raises(ValueError, match=f"groups is {groups}, expected a divisor of out_channels 3"):
            Conv2d(3, groups=groups)
    with pytest.raises(ValueError, match=r"groups=3.* gets 4 channels, expected a multiple of its groups"):
        Conv2d(3, groups=3).bind((4, 5, 5))
    with pytest.raises(ValueError, match=r"an input of \(5, 5\) is smaller than the kernel of \(7, 7\)"):
        Conv2d(3, 3, dilation=3).bind((1, 5, 5))
    with pytest.raises(ValueError, match="dilation is 0, expected a whole number of at least 1"):
        Conv2d(3, dilation=0)


@examples(25)
@given(
    groups=st.integers(1, 3),
    channels=st.integers(1, 2),
    out=st.integers(1, 2),
    kernel=SIZES,
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    samples=st.integers(1, 2),
)
def test_backward_with_groups_and_dilation_is_the_gradient(
    groups: int,
    channels: int,
    out: int,
    kernel: Pair,
    stride: int,
    padding: int,
    dilation: Pair,
    bias: bool,
    samples: int,
) -> None:
    layer = Conv2d(groups * out, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation, bias=bias)
    check_layer(layer, (groups * channels, 5, 6), samples)


def test_unsuitable_input_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs feature maps \(C, H, W\), it gets \(12,\)"):
        Conv2d(3).bind((12,))
    with pytest.raises(ValueError, match=r"an input of \(2, 9\) is smaller than the kernel of \(5, 5\)"):
        Conv2d(3, 5).bind((1, 2, 9))
    with pytest.raises(ValueError, match="out_channels is 0"):
        Conv2d(0)
