"""Parts that several architectures share."""

from __future__ import annotations

from collections.abc import Callable

from dptrain.arrays.layout import Shape
from dptrain.nn.layer import Layer
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.tensor import Init, uniform_fan_in


def conv_norm(channels: int, *, stride: int = 1, init: Callable[[int], Init] = uniform_fan_in) -> list[Layer]:
    """A 3 x 3 convolution that keeps the extent (divided by the stride), without bias, and batch normalisation."""
    return [Conv2d(channels, 3, stride=stride, padding=1, bias=False, init=init), BatchNorm2d()]


def needs_pixels(name: str, input_shape: Shape, least: int) -> None:
    """ValueError when images (C, H, W) have fewer than `least` pixels in H or W."""
    if min(input_shape[1:]) < least:
        found = " x ".join(map(str, input_shape[1:]))
        raise ValueError(f"{name} needs images of at least {least} x {least} pixels, these are {found}")
