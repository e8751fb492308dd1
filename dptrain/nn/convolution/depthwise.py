"""Depthwise convolution: each channel has its own kernel (Chollet 2017; Howard et al. 2017).

    y[oh, ow, n, c] = sum over kh, kw of
                      padded[oh * stride + kh * dilation, ow * stride + kw * dilation, n, c] * weight[c, 0, kh, kw]

Each term of the sum is a product of whole rows (N, C), where a place's weights (C,) are repeated for each sample. The
image is computed in strips of output rows that stay in the cache.
"""

from __future__ import annotations

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import PixelOrder
from dptrain.nn.layer import Pass

STRIP = 1 << 14  # values of a strip, unless one output row has more: 64 KiB


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
        rows = np.tile(kernels, samples)
        sums, places = self.new_sums(samples, workspace), self.places(padded)
        for strip in self._strips(samples):
            out = sums[strip].reshape(-1, self.extent[1], rows.shape[2])
            term = workspace.scratch(self.name, "terms", out.shape)
            for kh, kw, seen in places:
                pixels = seen[strip].reshape(out.shape)
                if kh == kw == 0:
                    np.multiply(pixels, rows[kh, kw], out=out)
                else:
                    out += np.multiply(pixels, rows[kh, kw], out=term)
        return self.by_window(sums), padded

    def backward(self, dsums: Array, padded: Array, kernels: Array, call: Pass) -> Array | None:
        workspace, samples = call.workspace, padded.shape[2]
        rows = np.tile(kernels, samples)
        drows = np.zeros_like(rows)
        dy = self.by_pixel(dsums)
        dpadded = self.new_dpadded(samples, workspace) if call.need_dx else None
        places = self.places(padded)
        dplaces = [] if dpadded is None else self.places(dpadded)
        for strip in self._strips(samples):
            dout = dy[strip].reshape(-1, self.extent[1], rows.shape[2])
            term = workspace.scratch(self.name, "terms", dout.shape)
            for kh, kw, seen in places:
                np.multiply(seen[strip].reshape(dout.shape), dout, out=term)
                drows[kh, kw] += term.sum(axis=(0, 1))
            for kh, kw, dseen in dplaces:
                pixels = dseen[strip].reshape(dout.shape)
                pixels += np.multiply(dout, rows[kh, kw], out=term)
        dkernels = drows.reshape(*kernels.shape[:2], samples, -1).sum(axis=2)
        np.copyto(call.gradients["weight"][:, 0], dkernels.transpose(2, 0, 1))
        return None if dpadded is None else self.inside(dpadded)

    def _strips(self, samples: int) -> list[slice]:
        """Rows of the output that are computed together."""
        height, width = self.extent
        rows = max(1, STRIP // (width * samples * self.geometry.input_shape[0]))
        return [slice(start, start + rows) for start in range(0, height, rows)]
