"""Average pooling, one axis after the other."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass, feature_maps, pair, windows
from dptrain.nn.layers.pool import entries_of_windows


class AvgPool2d(Layer):
    """Mean over windows of x (H, W, N, C): (OH, OW, N, C) with OH = (H - KH) // stride + 1.

    `stride` is the kernel size unless given.
    """

    kind = "avgpool"

    def __init__(self, kernel_size: int | tuple[int, int] = 2, *, stride: int | tuple[int, int] | None = None) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = self.kernel_size if stride is None else pair(stride, "stride", 1)

    def bind(self, input_shape: Shape) -> Shape:
        self.input_shape = channels, *extents = feature_maps(self, input_shape)
        self.output_shape = (channels, *windows(extents, self.kernel_size, self.stride, repr(self)))
        return self.output_shape

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        sums = x
        for axis in (1, 0):
            entries = self._entries(axis, sums)
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
            for entry in self._entries(axis, spread):
                entry += gradient
            gradient = spread
        return gradient

    def _entries(self, axis: int, x: Array) -> list[Array]:
        return entries_of_windows(axis, x, self.kernel_size[axis], self.stride[axis], self.output_shape[1 + axis])
