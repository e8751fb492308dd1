"""Max-pooling, one axis after the other."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, Pass, feature_maps, pair, windows

Masks = list[Array]


class Pool2d(Layer):
    """Base of pooling over windows of x (H, W, N, C): (OH, OW, N, C) with OH = (H - KH) // stride + 1."""

    def __init__(self, kernel_size: int | tuple[int, int] = 2, *, stride: int | tuple[int, int] | None = None) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = self.kernel_size if stride is None else pair(stride, "stride", 1)

    def bind(self, input_shape: Shape) -> Shape:
        self.input_shape = channels, *extents = feature_maps(self, input_shape)
        self.output_shape = (channels, *windows(extents, self.kernel_size, self.stride, repr(self)))
        return self.output_shape

    def entries(self, axis: int, x: Array) -> list[Array]:
        """Views: the first value of every window along an axis (0: height, 1: width), the second, ..."""
        stride, span = self.stride[axis], self.stride[axis] * (self.output_shape[1 + axis] - 1) + 1
        offsets = range(self.kernel_size[axis])
        return [x[(slice(None),) * axis + (slice(offset, offset + span, stride),)] for offset in offsets]


class MaxPool2d(Pool2d):
    """Maximum over windows of x (H, W, N, C): (OH, OW, N, C) with OH = (H - KH) // stride + 1.

    `stride` is the kernel size unless given. The axes are pooled one after the other, the width first: so the first
    of equal values, in row-major order, gets the gradient, as in PyTorch.
    """

    kind = "pool"

    def forward(self, x: Array, call: Pass) -> tuple[Array, tuple[Masks, Masks]]:
        rows, row_masks = self._max_along(1, x, call.workspace)
        y, column_masks = self._max_along(0, rows, call.workspace)
        return y, (row_masks, column_masks)

    def backward(self, dy: Array, saved: tuple[Masks, Masks], call: Pass) -> Array:
        row_masks, column_masks = saved
        drows = self._max_along_backward(0, dy, column_masks, call.workspace)
        return self._max_along_backward(1, drows, row_masks, call.workspace)

    def _max_along(self, axis: int, x: Array, workspace: Workspace) -> tuple[Array, Masks]:
        """Maximum along one axis, and for all but the last entry of a window a mask: is it the maximum?"""
        entries = self.entries(axis, x)
        y = workspace.array(self.name, f"max{axis}", entries[0].shape)
        np.maximum(entries[0], entries[-1], out=y)
        for entry in entries[1:-1]:
            np.maximum(y, entry, out=y)
        masks: Masks = []
        for offset, entry in enumerate(entries[:-1]):
            mask = workspace.array(self.name, f"mask{axis}.{offset}", y.shape, bool)
            np.equal(entry, y, out=mask)
            for earlier in masks:
                np.greater(mask, earlier, out=mask)  # mask and not earlier: the first of equals wins
            masks.append(mask)
        return y, masks

    def _max_along_backward(self, axis: int, dy: Array, masks: Masks, workspace: Workspace) -> Array:
        """dx of `_max_along`: each output's gradient goes to the first maximum."""
        shape = (*dy.shape[:axis], self.input_shape[1 + axis], *dy.shape[axis + 1 :])
        dx = workspace.array(self.name, f"dmax{axis}", shape)
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        if kernel != stride or shape[axis] != kernel * dy.shape[axis]:
            dx.fill(0)  # some values are in no window, or in several
        rest, part = (workspace.array(self.name, f"{purpose}{axis}", dy.shape) for purpose in ("rest", "part"))
        source = dy  # the gradient that no earlier entry got
        for offset, entry in enumerate(self.entries(axis, dx)):
            won = source
            if offset < len(masks):
                won = np.multiply(source, masks[offset], out=part)
                source = np.subtract(source, won, out=rest)
            if kernel <= stride:
                entry[...] = won
            else:
                entry += won
        return dx
