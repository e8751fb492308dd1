"""Batch normalisation that is frozen: it uses its running averages in training too."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass
from dptrain.nn.layers.norm import BatchNorm2d, by_rows, tiled


class FixedNorm(Layer):
    """a * x + b for each channel of x (H, W, N, C), as a BatchNorm2d in an evaluation. It couples no samples.

    Weight and bias are frozen, so they get no gradient.
    """

    def __init__(self, norm: BatchNorm2d) -> None:
        self.norm, self.name = norm, norm.name

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array]:
        slope, offset = self.norm.slope_and_offset(call.parameters, call.buffers)
        y = call.workspace.array(self.name, "y", by_rows(x).shape)
        np.multiply(by_rows(x), tiled(slope, x, "factor", call.workspace), out=y)
        y += tiled(offset, x, "offset", call.workspace)
        return y.reshape(x.shape), slope

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array | None:
        if not call.need_dx:
            return None
        dx = call.workspace.array(self.name, "dx", by_rows(dy).shape)
        np.multiply(by_rows(dy), tiled(saved, dy, "factor", call.workspace), out=dx)
        return dx.reshape(dy.shape)
