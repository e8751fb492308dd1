"""Depthwise convolution: each channel has its own kernel (Chollet 2017; Howard et al. 2017).

    y[oh, ow, n, c] = sum over kh, kw of
                      padded[oh * stride + kh * dilation, ow * stride + kw * dilation, n, c] * weight[c, 0, kh, kw]

The sums run along whole rows (N, C), for which a place's weights (C,) are repeated for each sample: there is no matrix
product. np.einsum adds products without storing them, which takes half the time of np.multiply and np.add (measured).
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import PixelOrder
from dptrain.nn.layer import Pass


class Depthwise(PixelOrder):
    """One group for each channel, as many outputs as inputs; any kernel, stride, padding and dilation."""

    algorithm = "depthwise"

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The weight as (KH, KW, C)."""
        channels, _, *kernel = weight.shape
        kernels = workspace.array(self.name, "kernels", (*kernel, channels))
        np.copyto(kernels, weight[:, 0].transpose(1, 2, 0))
        return kernels

    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, Array]:
        padded, samples = self.padded(x, workspace), x.shape[2]
        sums = self.new_sums(samples, workspace)
        out = sums.reshape(*self.extent, -1)
        np.einsum("abijr,abr->ijr", self._windows(padded), np.tile(kernels, samples), out=out)
        return self.by_window(sums), padded

    def backward(self, dsums: Array, padded: Array, kernels: Array, call: Pass) -> Array | None:
        workspace, samples = call.workspace, padded.shape[2]
        dy = self.by_pixel(dsums).reshape(*self.extent, -1)
        by_sample = np.einsum("abijr,ijr->abr", self._windows(padded), dy)
        dkernels = by_sample.reshape(*kernels.shape[:2], samples, -1).sum(axis=2)
        np.copyto(call.gradients["weight"][:, 0], dkernels.transpose(2, 0, 1))
        if not call.need_dx:
            return None
        rows = np.tile(kernels, samples)
        dpadded = self.new_dpadded(samples, workspace)
        term = workspace.scratch(self.name, "terms", dy.shape)
        for kh, kw, seen in self.places(dpadded):
            pixels = seen.reshape(dy.shape)  # a view
            pixels += np.multiply(dy, rows[kh, kw], out=term)
        return self.inside(dpadded)

    def _windows(self, padded: Array) -> Array:
        """The pixels that the outputs read, a view (KH, KW, OH, OW, N * C)."""
        rows = padded.reshape(*padded.shape[:2], -1)
        (down, across), item = rows.strides[:2], rows.strides[2]
        (dh, dw), (sh, sw) = self.geometry.dilation, self.geometry.stride
        shape = (*self.geometry.kernel_size, *self.extent, rows.shape[2])
        return as_strided(rows, shape, (dh * down, dw * across, sh * down, sw * across, item), writeable=False)
