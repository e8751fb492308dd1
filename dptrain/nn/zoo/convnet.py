"""A plain convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from dptrain.arrays.layout import Shape
from dptrain.nn.layer import Layer, whole_number, whole_numbers
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.tensor import small_uniform


def convnet(input_shape: Shape, classes: int, *, widths: Sequence[int] = (32, 64), kernel_size: int = 3) -> list[Layer]:
    """(Conv, ReLU, MaxPool 2) for each width, then Flatten and Linear; only pooling shrinks the maps."""
    if whole_number(kernel_size, "kernel_size") % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
    layers: list[Layer] = []
    for width in whole_numbers(widths, "widths"):
        layers += [Conv2d(width, kernel_size, padding=kernel_size // 2), ReLU(), MaxPool2d(2)]
    return [*layers, Flatten(), Linear(classes, init=small_uniform)]
