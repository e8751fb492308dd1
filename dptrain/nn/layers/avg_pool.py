"""Average pooling, one axis after the other."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.nn.layer import Pass
from dptrain.nn.layers.pool import Pool2d


class AvgPool2d(Pool2d):
    """Mean over windows of x (H, W, N, C): (OH, OW, N, C) with OH = (H - KH) // stride + 1.

    `stride` is the kernel size unless given.
    """

    kind = "avgpool"

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        sums = x
        for axis in (1, 0):
            entries = self.entries(axis, sums)
            sums = call.workspace.array(self.name, f"sums{axis}", entries[0].shape)
            np.copyto(sums, entries[0])
            for entry in entries[1:]:
                sums += entry
        sums *= 1 / (self.kernel_size[0] * self.kernel_size[1])
        return sums, None

    def backward(self, dy: Array, saved: None, call: Pass) -> Array:
        gradient = dy
        gradient *= 1 / (self.kernel_size[0] * self.kernel_size[1])
        for axis in (0, 1):
            shape = list(gradient.shape)
            shape[axis] = self.input_shape[1 + axis]
            spread = call.workspace.array(self.name, f"spread{axis}", tuple(shape))
            spread.fill(0)  # some values may be in no window, or in several
            for entry in self.entries(axis, spread):
                entry += gradient
            gradient = spread
        return gradient
