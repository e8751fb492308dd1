"""Convolution as a matrix product over im2col columns (Chellapilla, Puri and Simard 2006).

Column (oh, ow, n) of the matrix holds the window of sample n that output pixel (oh, ow) reads:

    cols[c, kh, kw, oh, ow, n] = padded[c, oh * stride + kh, ow * stride + kw, n]
    y[oh, ow, n, o]            = sum over c, kh, kw of cols[c, kh, kw, oh, ow, n] * weight[o, c, kh, kw]

For pooling by q, output pixel (oh, ow) = (q * i + p, q * j + t) is column (p, t, i, j, n) instead. The padded input
is kept channel by channel and in m x m *phases*, each with every m-th pixel, so that the values of neighbouring
columns are contiguous in memory:

    phases[r, s, c, a, b, n] = padded[c, m * a + r, m * b + s, n]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Correlation, Geometry
from dptrain.nn.convolution.products import matmul, matmul_of_long
from dptrain.nn.layer import Pass


class Im2col(Correlation):
    """Any kernel, stride and padding."""

    algorithm = "im2col"

    def __init__(self, geometry: Geometry, q: int) -> None:
        super().__init__(geometry, q)
        _, height, width = geometry.output_shape
        self.extent = (height // q * q, width // q * q)  # pixels in no pooling window are not computed
        # In phases, the same place of the next pooling window is the next value in memory.
        self._m = m = q if geometry.stride == (1, 1) else 1
        (ph, pw), (channels, h, w) = geometry.padding, geometry.input_shape
        self._phases = (m, m, channels, -(-(h + 2 * ph) // m), -(-(w + 2 * pw) // m))
        rows, columns = ([_phase(r, m, padding, extent) for r in range(m)] for padding, extent in ((ph, h), (pw, w)))
        self._places: list[tuple[Any, Any]] = [  # for each phase: its pixels in (C, H, W, N), and its part of `phases`
            ((slice(None), row, column), (r, s, slice(None), down, across))
            for r, (row, down) in enumerate(rows)
            for s, (column, across) in enumerate(columns)
        ]

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The weight as a matrix (C * KH * KW, O)."""
        kernels = workspace.array(self.name, "kernels", (self.geometry.fan_in, len(weight)))
        np.copyto(kernels, weight.reshape(len(weight), -1).T)
        return kernels

    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, Array]:
        (height, width), samples, q = self.extent, x.shape[-2], self.q
        phases = workspace.array(self.name, "phases", (*self._phases, samples), zeroed=True)  # the border stays zero
        planes = x.transpose(3, 0, 1, 2)
        for source, place in self._places:
            phases[place] = planes[source]
        pixels = (q, q, height // q, width // q, samples)
        cols = workspace.array(self.name, "cols", (x.shape[-1], *self.geometry.kernel_size, *pixels))
        for part, seen in workspace.views(self.name, "windows", (cols, phases), self._parts):
            part[...] = seen
        sums = workspace.scratch(self.name, "sums", (*pixels, self.geometry.output_shape[0]))
        matmul(cols.reshape(len(kernels), -1).T, kernels, out=sums.reshape(-1, sums.shape[-1]))
        return sums, cols

    def backward(self, dsums: Array, cols: Array, kernels: Array, call: Pass) -> Array | None:
        workspace, dweight = call.workspace, call.gradients["weight"]
        dy = dsums.reshape(-1, len(dweight))
        dkernels = workspace.array(self.name, "dkernels", kernels.shape)
        matmul_of_long(cols.reshape(len(kernels), -1), dy, dkernels, self.name, workspace)
        np.copyto(dweight.reshape(len(dweight), -1), dkernels.T)
        if not call.need_dx:
            return None
        dcols = cols  # their gradient is written over them
        matmul(kernels, dy.T, out=dcols.reshape(len(kernels), -1))
        samples, (channels, *extents) = dsums.shape[-2], self.geometry.input_shape
        dphases = workspace.array(self.name, "dphases", (*self._phases, samples))
        dphases.fill(0)
        for part, seen in workspace.views(self.name, "dwindows", (dcols, dphases), self._single_parts):
            seen += part
        dx = workspace.array(self.name, "dx", (*extents, samples, channels))
        planes = dx.transpose(3, 0, 1, 2)
        for source, place in self._places:
            planes[source] = dphases[place]
        return dx

    def in_order_of_sums(self, image: Array) -> Array:
        return image

    def _parts(self, cols: Array, phases: Array) -> list[tuple[Array, Array]]:
        """For each phase, the columns of the kernel's places in it, and the pixels that they read.

        Pairs of views (C, ., ., q, q, OH / q, OW / q, N).
        """
        q, m = self.q, self._m
        (sh, sw), (kernel_height, kernel_width) = self.geometry.stride, self.geometry.kernel_size
        in_row_phase, in_column_phase, of_channel, down, across, of_sample = phases.strides

        def offset(row: int, column: int) -> int:
            in_phases = row % m * in_row_phase + column % m * in_column_phase
            return in_phases + row // m * down + column // m * across

        # With q = m = 2 and stride 1, the next pixel of a window is in the other phase, and the same pixel of the next
        # window is the next one of the same phase.
        parts: list[tuple[Array, Array]] = []
        for r, s in np.ndindex(min(m, kernel_height), min(m, kernel_width)):
            steps = offset(r + sh, s), offset(r, s + sw), offset(r + sh * q, s), offset(r, s + sw * q)
            part = cols[:, r::m, s::m]
            strides = (of_channel, down, across, *(step - offset(r, s) for step in steps), of_sample)
            parts.append((part, as_strided(phases[r, s], part.shape, strides)))
        return parts

    def _single_parts(self, cols: Array, phases: Array) -> list[tuple[Array, Array]]:
        """The same for one place at a time: no pixel is in a view twice, so values can be added to it."""
        return [
            (part[:, kh, kw], seen[:, kh, kw])
            for part, seen in self._parts(cols, phases)
            for kh, kw in np.ndindex(part.shape[1:3])
        ]


def _phase(r: int, m: int, padding: int, extent: int) -> tuple[slice, slice]:
    """Phase r along one axis: which pixels of x, and their indices within the phase."""
    first = (r - padding) % m
    start = (first + padding) // m
    return slice(first, None, m), slice(start, start + len(range(first, extent, m)))
