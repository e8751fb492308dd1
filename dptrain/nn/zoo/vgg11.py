"""VGG11 with batch normalisation."""

from __future__ import annotations

from dptrain.arrays.layout import Shape
from dptrain.nn.layer import Layer, whole_number
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.tensor import uniform_fan_in
from dptrain.nn.zoo.blocks import conv_norm

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels of the convolutions, in multiples of the width


def vgg11(input_shape: Shape, classes: int, *, width: int = 64) -> list[Layer]:
    """VGG11 (configuration A of Simonyan and Zisserman 2014) with batch normalisation and a small head.

    Eight convolutions in five stages, each followed by MaxPool 2 while the maps have more than one pixel. One linear
    layer takes the place of the paper's three, as usual for CIFAR. Weights begin as in PyTorch.
    """
    layers: list[Layer] = []
    extent = min(input_shape[1:])
    for stage in STAGES:
        for multiple in stage:
            layers += [*conv_norm(multiple * whole_number(width, "width")), ReLU()]
        if extent > 1:
            layers.append(MaxPool2d(2))
            extent //= 2
    return [*layers, Flatten(), Linear(classes, init=uniform_fan_in)]
