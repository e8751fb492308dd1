"""Convolution with a 1x1 kernel: a matrix product of the pixels, which x (H, W, N, C) already holds as rows.

y[oh, ow, n, o] = sum over c of x[oh * stride, ow * stride, n, c] * weight[o, c]
"""

from __future__ import annotations

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import PixelOrder
from dptrain.nn.convolution.products import matmul, matmul_of_long
from dptrain.nn.layer import Pass


class Pointwise(PixelOrder):
    """Kernels 1x1 without padding, any stride."""

    algorithm = "pointwise"

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The weight as a matrix (C, O)."""
        kernels = workspace.array(self.name, "kernels", weight.shape[1::-1])
        np.copyto(kernels, weight[:, :, 0, 0].T)
        return kernels

    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, Array]:
        seen = x[self._seen()]
        pixels = seen
        if not seen.flags.c_contiguous:
            pixels = workspace.array(self.name, "pixels", seen.shape)
            np.copyto(pixels, seen)
        sums = self.new_sums(x.shape[2], workspace)
        matmul(pixels.reshape(-1, len(kernels)), kernels, out=sums.reshape(-1, sums.shape[-1]))
        return self.by_window(sums), pixels

    def backward(self, dsums: Array, pixels: Array, kernels: Array, call: Pass) -> Array | None:
        workspace, (channels, out_channels) = call.workspace, kernels.shape
        dy = self.by_pixel(dsums).reshape(-1, out_channels)
        rows = pixels.reshape(-1, channels)
        dkernels = workspace.array(self.name, "dkernels", kernels.shape)
        matmul_of_long(rows.T, dy, dkernels, self.name, workspace)
        np.copyto(call.gradients["weight"][:, :, 0, 0], dkernels.T)
        if not call.need_dx:
            return None
        height, width = self.geometry.input_shape[1:]
        dx = workspace.array(self.name, "dx", (height, width, *pixels.shape[2:]))
        dpixels = dx
        if dx.shape != pixels.shape:
            dx.fill(0)  # pixels that no window reads
            dpixels = workspace.scratch(self.name, "dpixels", pixels.shape)
        matmul(dy, kernels.T, out=dpixels.reshape(rows.shape))
        if dpixels is not dx:
            np.copyto(dx[self._seen()], dpixels)
        return dx

    def _seen(self) -> tuple[slice, slice]:
        """The rows and columns of x that the output depends on."""
        rows, columns = (
            slice(0, (extent - 1) * step + 1, step)
            for extent, step in zip(self.extent, self.geometry.stride, strict=True)
        )
        return rows, columns
