"""Softmax regression."""

from __future__ import annotations

from dptrain.arrays.layout import Shape
from dptrain.nn.layer import Layer
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.tensor import small_uniform


def linear(input_shape: Shape, classes: int) -> list[Layer]:
    """Softmax regression: a network without convolutions."""
    return [Flatten(), Linear(classes, init=small_uniform)]
