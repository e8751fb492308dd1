"""The networks of airbench (Jordan 2024), which learn CIFAR-10 with little computation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dptrain.arrays.layout import Shape
from dptrain.nn.layer import Layer, whole_numbers
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.gelu import GELU
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.layers.scale import Scale
from dptrain.nn.layers.whitening import WhiteningConv2d
from dptrain.nn.tensor import Init, uniform, uniform_fan_in
from dptrain.nn.zoo.blocks import needs_pixels


def airbench(
    input_shape: Shape,
    classes: int,
    *,
    widths: Sequence[int] = (64, 256, 256),
    logit_scale: float = 1 / 9,
    unit_head: bool = False,
) -> list[Layer]:
    """A fixed whitening convolution, then a group of two convolutions for each width (Jordan 2024, airbench93 and 94).

    Each group halves the maps. The first filters of each convolution begin as identities. Batch normalisations have no
    weight. The maximum over each map goes to a linear layer without bias, and the logits are multiplied by
    `logit_scale`. With `unit_head` the linear layer's weights begin with standard deviation 1, as in airbench94_muon;
    all others begin as in PyTorch.
    """
    widths = whole_numbers(widths, "widths")
    shrinks = 2 ** len(widths)
    needs_pixels("airbench", input_shape, shrinks + 1)
    layers: list[Layer] = [WhiteningConv2d(2), GELU()]
    for width in widths:
        layers += [_conv(width), MaxPool2d(2), _norm(), GELU(), _conv(width), _norm(), GELU()]
    whole_map = (input_shape[1] - 1) // shrinks, (input_shape[2] - 1) // shrinks
    head = Linear(classes, bias=False, init=unit_deviation if unit_head else uniform_fan_in)
    return [*layers, MaxPool2d(whole_map), Flatten(), head, Scale(logit_scale)]


def _conv(width: int) -> Conv2d:
    return Conv2d(width, 3, padding=1, bias=False, init=uniform_fan_in, identity=True)


def _norm() -> BatchNorm2d:
    return BatchNorm2d(eps=1e-12, momentum=0.4, scale=False)


def unit_deviation(fan_in: int) -> Init:
    """Uniform with standard deviation 1."""
    return uniform(math.sqrt(3))
