"""Pooling over whole maps."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass, feature_maps


class GlobalAvgPool2d(Layer):
    """The mean of each map: x (H, W, N, C) becomes (N, C), ready for Linear."""

    kind = "avgpool"

    def bind(self, input_shape: Shape) -> Shape:
        return feature_maps(self, input_shape)[:1]

    def forward(self, x: Array, call: Pass) -> tuple[Array, Shape]:
        y = call.workspace.array(self.name, "y", x.shape[2:])
        np.sum(x, axis=(0, 1), out=y)
        y /= x.shape[0] * x.shape[1]
        return y, x.shape

    def backward(self, dy: Array, saved: Shape, call: Pass) -> Array:
        dx = call.workspace.array(self.name, "dx", saved)
        dx[...] = dy / (saved[0] * saved[1])
        return dx
