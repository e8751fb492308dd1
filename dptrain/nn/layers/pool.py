"""Max-pooling, one axis after the other."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, pair, windows
from dptrain.nn.passes import Pass

Masks = list[Array]


class MaxPool2d(Layer):
    """Maximum over windows of x (H, W, N, C): (OH, OW, N, C) with OH = (H - KH) // stride + 1.

    `stride` is the kernel size unless given. Of equal values in a window the first in row-major order gets
    the gradient, as in PyTorch: the width is pooled first, so that a tie between rows is decided last.
    """

    kind = "pool"

    def __init__(self, kernel_size: int | tuple[int, int] = 2, *, stride: int | tuple[int, int] | None = None) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = self.kernel_size if stride is None else pair(stride, "stride", 1)

    def bind(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise ValueError(f"{self!r} needs feature maps (C, H, W), it gets {input_shape}")
        self.input_shape = input_shape
        channels, height, width = input_shape
        self.output_shape = (
            channels,
            windows(height, self.kernel_size[0], self.stride[0], f"{self!r}, height"),
            windows(width, self.kernel_size[1], self.stride[1], f"{self!r}, width"),
        )
        return self.output_shape

    def forward(self, x: Array, call: Pass) -> tuple[Array, tuple[Masks, Masks]]:
        rows, row_masks = self._max_along(1, x, call.workspace)
        y, column_masks = self._max_along(0, rows, call.workspace)
        return y, (row_masks, column_masks)

    def backward(self, dy: Array, saved: tuple[Masks, Masks], call: Pass) -> Array:
        row_masks, column_masks = saved
        drows = self._max_along_backward(0, dy, column_masks, call.workspace)
        return self._max_along_backward(1, drows, row_masks, call.workspace)

    def _window(self, axis: int, offset: int) -> tuple[slice, ...]:
        """The entries number `offset` of all windows along an axis (0: height, 1: width)."""
        stride = self.stride[axis]
        entries = slice(offset, offset + stride * (self.output_shape[1 + axis] - 1) + 1, stride)
        return (slice(None),) * axis + (entries,)

    def _max_along(self, axis: int, x: Array, workspace: Workspace) -> tuple[Array, Masks]:
        """Maximum along one axis, and for all but the last entry of a window a mask: does it win?"""
        kernel = self.kernel_size[axis]
        shape = (*x.shape[:axis], self.output_shape[1 + axis], *x.shape[axis + 1 :])
        entries = [x[self._window(axis, offset)] for offset in range(kernel)]
        y = workspace.array(self.name, f"max{axis}", shape)
        if kernel == 2:
            np.maximum(entries[0], entries[1], out=y)
        else:
            np.copyto(y, entries[0])
            for entry in entries[1:]:
                np.maximum(y, entry, out=y)
        masks: Masks = []
        for offset, entry in enumerate(entries[:-1]):
            mask = workspace.array(self.name, f"mask{axis}.{offset}", shape, bool)
            np.equal(entry, y, out=mask)
            for earlier in masks:
                np.greater(mask, earlier, out=mask)  # mask and not earlier: the first of equals wins
            masks.append(mask)
        return y, masks

    def _max_along_backward(self, axis: int, dy: Array, masks: Masks, workspace: Workspace) -> Array:
        """dx of `_max_along`: each output's gradient goes to the entry that won."""
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        shape = (*dy.shape[:axis], self.input_shape[1 + axis], *dy.shape[axis + 1 :])
        dx = workspace.array(self.name, f"dmax{axis}", shape)
        if kernel != stride or shape[axis] != kernel * dy.shape[axis]:
            dx.fill(0)  # some entries are in no window, or in several
        rest = workspace.array(self.name, f"rest{axis}", dy.shape)
        part = workspace.array(self.name, f"part{axis}", dy.shape)
        for offset in range(kernel):
            source = dy if offset == 0 else rest
            entry = dx[self._window(axis, offset)]
            if offset == kernel - 1:
                won = source  # the gradient that no earlier entry got
            else:
                won = np.multiply(source, masks[offset], out=part)
                np.subtract(source, won, out=rest)
            if kernel <= stride:
                entry[...] = won
            else:
                entry += won
        return dx
