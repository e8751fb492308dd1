"""Convolution as a matrix product over im2col columns (Chellapilla, Puri and Simard 2006).

Column (oh, ow, n) of the matrix holds the window of sample n that output pixel (oh, ow) sees:

    cols[c, kh, kw, oh, ow, n] = padded[c, oh * stride + kh, ow * stride + kw, n]
    y[o, oh, ow, n]            = sum over c, kh, kw of weight[o, c, kh, kw] * cols[c, kh, kw, oh, ow, n]

For pooling by q, output pixel (oh, ow) = (q * i + p, q * j + t) is column (p, t, i, j, n) instead.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.nn.correlation import Correlation, Geometry
from dptrain.nn.products import matmul, matmul_transposed
from dptrain.nn.workspace import Array, Workspace


class Im2col(Correlation):
    """Any kernel, stride and padding."""

    def __init__(self, geometry: Geometry, name: str, q: int) -> None:
        super().__init__(geometry, name, q)
        _, height, width = geometry.output_shape
        self.extent = (height // q * q, width // q * q)  # what no pooling window reaches is not computed
        # In phases a window's neighbour in the same place of the next pooling window is the next value in memory.
        self._m = q if geometry.stride == (1, 1) else 1

    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, Array]:
        out_channels, (height, width), samples, q = len(kernels), self.extent, x.shape[-1], self.q
        (ph, pw), (_, h, w) = self.geometry.padding, self.geometry.input_shape
        phases = self.pad(x, self._m, (h + 2 * ph, w + 2 * pw), workspace)
        pixels = (q, q, height // q, width // q, samples)
        cols = workspace.array(self.name, "cols", (x.shape[0], *self.geometry.kernel_size, *pixels))
        for part, seen in workspace.views(self.name, "windows", phases, partial(self._parts, cols)):
            part[...] = seen
        cols = cols.reshape(self.geometry.fan_in, -1)
        sums = workspace.scratch(self.name, "sums", (out_channels, *pixels))
        matmul(kernels.reshape(out_channels, -1), cols, out=sums.reshape(out_channels, -1))
        return sums.transpose(1, 2, 0, 3, 4, 5), cols

    def backward(
        self, dsums: Array, cols: Array, kernels: Array, dweight: Array, workspace: Workspace, need_dx: bool
    ) -> Array | None:
        out_channels, samples = len(kernels), dsums.shape[-1]
        dsums = dsums.transpose(2, 0, 1, 3, 4, 5)
        dy = dsums.reshape(out_channels, -1)
        matmul_transposed(dy, cols, dweight.reshape(out_channels, -1), self.name, workspace)
        if not need_dx:
            return None
        # The columns have served: their memory takes their own gradient.
        matmul(kernels.reshape(out_channels, -1).T, dy, out=cols)
        dcols = cols.reshape(-1, *self.geometry.kernel_size, *dsums.shape[1:])
        (ph, pw), (channels, h, w), m = self.geometry.padding, self.geometry.input_shape, self._m
        shape = (m, m, channels, -(-(h + 2 * ph) // m), -(-(w + 2 * pw) // m), samples)
        dphases = workspace.array(self.name, "dphases", shape)
        dphases.fill(0)
        for part, seen in workspace.views(self.name, "dwindows", dphases, partial(self._single_parts, dcols)):
            seen += part
        return self.unpad(dphases, m, workspace)

    def in_own_order(self, image: Array) -> Array:
        return image

    def _parts(self, cols: Array, phases: Array) -> list[tuple[Array, Array]]:
        """For each phase the places (kh, kw) of the kernel that begin in it: their columns, and the pixels they meet.

        Pairs of views (C, ., ., q, q, OH / q, OW / q, N).
        """
        q, m = self.q, self._m
        (sh, sw), (kernel_height, kernel_width) = self.geometry.stride, self.geometry.kernel_size
        in_row_phase, in_column_phase, of_channel, down, across, of_sample = phases.strides

        def row(index: int) -> int:
            return index % m * in_row_phase + index // m * down

        def column(index: int) -> int:
            return index % m * in_column_phase + index // m * across

        parts: list[tuple[Array, Array]] = []
        for r in range(min(m, kernel_height)):
            for s in range(min(m, kernel_width)):
                part = cols[:, r::m, s::m]
                in_window = row(r + sh) - row(r), column(s + sw) - column(s)
                to_next = row(r + sh * q) - row(r), column(s + sw * q) - column(s)
                strides = (of_channel, down, across, *in_window, *to_next, of_sample)
                parts.append((part, as_strided(phases[r, s], part.shape, strides)))
        return parts

    def _single_parts(self, cols: Array, phases: Array) -> list[tuple[Array, Array]]:
        """The same for one place at a time: no pixel comes twice in a view, so it can be added to."""
        return [
            (part[:, kh, kw], seen[:, kh, kw])
            for part, seen in self._parts(cols, phases)
            for kh, kw in np.ndindex(part.shape[1:3])
        ]
