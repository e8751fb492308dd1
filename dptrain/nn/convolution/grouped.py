"""Grouped and dilated convolution: a stack of matrix products, one for each group of channels (Krizhevsky et al. 2012).

Row (oh, ow, n) of a group's matrix holds the pixels that the group's outputs read there. With c of the C / G channels
and o of the O / G outputs of group g:

    rows[g, oh, ow, n, kh, kw, c] = padded[oh * stride + kh * dilation, ow * stride + kw * dilation, n, g, c]
    y[oh, ow, n, g, o]            = sum over kh, kw, c of rows[g, oh, ow, n, kh, kw, c] * weight[g, o, c, kh, kw]
"""

from __future__ import annotations

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import PixelOrder
from dptrain.nn.convolution.products import matmul, matmul_of_long
from dptrain.nn.layer import Pass


class Grouped(PixelOrder):
    """Any kernel, stride, padding, dilation and number of groups G."""

    algorithm = "grouped"

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The weight as matrices (G, KH * KW * C / G, O / G)."""
        groups, (out_channels, channels, *kernel) = self.geometry.groups, weight.shape
        kernels = workspace.array(self.name, "kernels", (groups, *kernel, channels, out_channels // groups))
        np.copyto(kernels, weight.reshape(groups, -1, channels, *kernel).transpose(0, 3, 4, 2, 1))
        return kernels.reshape(groups, self.geometry.fan_in, -1)

    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, Array]:
        padded = self.padded(x, workspace)
        groups, samples = self.geometry.groups, x.shape[2]
        rows = workspace.array(
            self.name, "rows", (groups, *self.extent, samples, *self.geometry.kernel_size, x.shape[3] // groups)
        )
        for kh, kw, seen in self.places(padded):
            np.copyto(rows[..., kh, kw, :], _by_group(seen, groups))
        sums = self.new_sums(samples, workspace)
        products = _by_group(sums, groups).reshape(groups, -1, kernels.shape[2])
        matmul(rows.reshape(groups, -1, self.geometry.fan_in), kernels, out=products)
        return self.by_window(sums), rows

    def backward(self, dsums: Array, rows: Array, kernels: Array, call: Pass) -> Array | None:
        workspace, groups = call.workspace, self.geometry.groups
        dy = _by_group(self.by_pixel(dsums), groups).reshape(groups, -1, kernels.shape[2])
        matrices = rows.reshape(groups, -1, kernels.shape[1])
        dkernels = workspace.array(self.name, "dkernels", kernels.shape)
        for matrix, dproduct, dkernel in zip(matrices, dy, dkernels, strict=True):
            matmul_of_long(matrix.T, dproduct, dkernel, self.name, workspace)
        dweight = call.gradients["weight"]
        out_channels, channels, *kernel = dweight.shape
        of_groups = dkernels.reshape(groups, *kernel, channels, out_channels // groups)
        np.copyto(dweight.reshape(groups, -1, channels, *kernel), of_groups.transpose(0, 4, 3, 1, 2))
        if not call.need_dx:
            return None
        matmul(dy, kernels.swapaxes(1, 2), out=matrices)  # the rows become their gradient
        dpadded = self.new_dpadded(dsums.shape[-2], workspace)
        for kh, kw, seen in self.places(dpadded):
            part = _by_group(seen, groups)
            part += rows[..., kh, kw, :]
        return self.inside(dpadded)


def _by_group(image: Array, groups: int) -> Array:
    """(H, W, N, C) as a view (G, H, W, N, C / G)."""
    return np.moveaxis(image.reshape(*image.shape[:-1], groups, -1), -2, 0)
