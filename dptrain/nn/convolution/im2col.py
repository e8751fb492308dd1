"""Convolution as a matrix product over im2col columns (Chellapilla, Puri and Simard 2006).

Column (oh, ow, n) of the matrix holds the window of sample n that output pixel (oh, ow) reads:

    cols[c, kh, kw, oh, ow, n] = padded[c, oh * stride + kh, ow * stride + kw, n]
    y[oh, ow, n, o]            = sum over c, kh, kw of cols[c, kh, kw, oh, ow, n] * weight[o, c, kh, kw]

For pooling by q, output pixel (oh, ow) = (q * i + p, q * j + t) is column (p, t, i, j, n) instead. The padded input
is kept channel by channel and in m x m *phases*, each with every m-th pixel, so that the values of neighbouring
columns are contiguous in memory:

    phases[r, s, c, a, b, n] = padded[c, m * a + r, m * b + s, n]

The map is computed in strips of rows, so that the columns and sums of a strip stay in the second-level cache. On Zen 4
(1 MiB, columns kept for the backward pass) a first convolution ran 4 % faster in strips, at 64 samples twice as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Correlation, Geometry, Strip
from dptrain.nn.convolution.products import matmul, matmul_of_long
from dptrain.nn.layer import Pass

# The gradient of the weight is a product with as many rows as the matrix of columns. OpenBLAS multiplies four rows at a
# time: 28 rows take 20 % less time than 27 (measured, AVX2).
ROWS_TOGETHER = 4

Views = list[tuple[Array, Array]]  # of columns, and of pixels in phases


class Rows(NamedTuple):
    """A strip of the map."""

    rows: slice  # of pooling windows
    columns: Array  # (C * KH * KW and rows of zeros, q * q * rows * OW / q * N)
    windows: Views
    sums: Array  # (q, q, rows, OW / q, N, O), in memory that all strips share
    flat_sums: Array  # the same as (q * q * rows * OW / q * N, O)


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
        self._rows = -(-geometry.fan_in // ROWS_TOGETHER) * ROWS_TOGETHER  # of the matrix

    def strips(self, samples: int) -> list[slice]:
        """The rows of pooling windows that are computed at once.

        So many that columns and sums take at most twice the cache. For 3.8 MiB on Zen 4 (1 MiB), two strips were 3 to
        4 % faster than one or three, and 5 to 9 % faster than four (the step of the default network).
        """
        (height, width), q = self.extent, self.q
        bytes_of_row = 4 * q * width * samples * (self._rows + self.geometry.output_shape[0])
        size = bytes_of_row * (height // q)
        number = max(1, -(-size // (2 * self.cache)))
        rows = -(-(height // q) // number)
        return [slice(start, min(start + rows, height // q)) for start in range(0, height // q, rows)]

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The weight as a matrix (C * KH * KW and rows of zeros, O)."""
        kernels = workspace.array(self.name, "kernels", (self._rows, len(weight)), zeroed=True)
        np.copyto(kernels[: self.geometry.fan_in], weight.reshape(len(weight), -1).T)
        return kernels

    def forward_strips(self, x: Array, kernels: Array, workspace: Workspace, take: Strip) -> tuple[Array, Array]:
        samples = x.shape[-2]
        phases = workspace.array(self.name, "phases", (*self._phases, samples), zeroed=True)  # the border stays zero
        planes = x.transpose(3, 0, 1, 2)
        for source, place in self._places:
            phases[place] = planes[source]
        cols = workspace.array(self.name, "cols", (self._rows * math.prod(self.extent) * samples,), zeroed=True)
        for strip in self._strips("strips", self._parts, cols, phases, workspace):
            for part, seen in strip.windows:
                part[...] = seen
            matmul(strip.columns.T, kernels, out=strip.flat_sums)
            take(strip.rows, strip.sums)
        return cols, phases

    def backward_strips(self, give: Strip, saved: tuple[Array, Array], kernels: Array, call: Pass) -> Array | None:
        (cols, phases), workspace = saved, call.workspace
        dweight, fan_in, samples = call.gradients["weight"], self.geometry.fan_in, phases.shape[-1]
        dkernels, of_strip = (workspace.array(self.name, name, kernels.shape) for name in ("dkernels", "of a strip"))
        if call.need_dx:
            dphases = workspace.array(self.name, "dphases", phases.shape)
            dphases.fill(0)
            strips = self._strips("strips of gradients", self._single_parts, cols, dphases, workspace)
        else:
            strips = self._strips("strips", self._parts, cols, phases, workspace)
        for strip in strips:
            give(strip.rows, strip.sums)
            first = strip is strips[0]
            matmul_of_long(strip.columns, strip.flat_sums, dkernels if first else of_strip, self.name, workspace)
            if not first:
                dkernels += of_strip
            if call.need_dx:  # the gradient of the columns is written over them; the rows of zeros stay
                matmul(kernels[:fan_in], strip.flat_sums.T, out=strip.columns[:fan_in])
                for part, seen in strip.windows:
                    seen += part
        np.copyto(dweight.reshape(len(dweight), -1), dkernels[:fan_in].T)
        if not call.need_dx:
            return None
        channels, *extents = self.geometry.input_shape
        dx = workspace.array(self.name, "dx", (*extents, samples, channels))
        planes = dx.transpose(3, 0, 1, 2)
        for source, place in self._places:
            planes[source] = dphases[place]
        return dx

    def in_order_of_sums(self, image: Array) -> Array:
        return image

    def _strips(
        self, purpose: str, parts: Callable[[Array, Array], Views], cols: Array, phases: Array, workspace: Workspace
    ) -> list[Rows]:
        """The strips; `parts` makes views of columns (C, KH, KW, q, q, rows, OW / q, N) and of `phases` in pairs."""
        q, samples, out_channels = self.q, phases.shape[-1], self.geometry.output_shape[0]
        pixels = q * self.extent[1] * samples  # of a row of pooling windows
        strips = self.strips(samples)
        sums = workspace.scratch(self.name, "sums", (strips[0].stop * pixels, out_channels))

        def make(cols: Array, phases: Array, sums: Array) -> list[Rows]:
            made = []
            for rows in strips:
                count = rows.stop - rows.start
                matrix = cols[self._rows * pixels * rows.start : self._rows * pixels * rows.stop]
                matrix = matrix.reshape(self._rows, count * pixels)
                shape = (q, q, count, self.extent[1] // q, samples)
                columns = matrix[: self.geometry.fan_in].reshape(len(phases[0, 0]), *self.geometry.kernel_size, *shape)
                below = phases[:, :, :, rows.start * q * self.geometry.stride[0] // self._m :]
                flat = sums[: count * pixels]
                made.append(Rows(rows, matrix, parts(columns, below), flat.reshape(*shape, out_channels), flat))
            return made

        return workspace.views(self.name, purpose, (cols, phases, sums), make)

    def _parts(self, cols: Array, phases: Array) -> Views:
        """For each phase, the columns of the kernel's places in it, and the pixels that they read.

        Pairs of views (C, ., ., q, q, rows, OW / q, N).
        """
        q, m = self.q, self._m
        (sh, sw), (kernel_height, kernel_width) = self.geometry.stride, self.geometry.kernel_size
        in_row_phase, in_column_phase, of_channel, down, across, of_sample = phases.strides

        def offset(row: int, column: int) -> int:
            in_phases = row % m * in_row_phase + column % m * in_column_phase
            return in_phases + row // m * down + column // m * across

        # With q = m = 2 and stride 1, the next pixel of a window is in the other phase, and the same pixel of the next
        # window is the next one of the same phase.
        parts: Views = []
        for r, s in np.ndindex(min(m, kernel_height), min(m, kernel_width)):
            steps = offset(r + sh, s), offset(r, s + sw), offset(r + sh * q, s), offset(r, s + sw * q)
            part = cols[:, r::m, s::m]
            strides = (of_channel, down, across, *(step - offset(r, s) for step in steps), of_sample)
            parts.append((part, as_strided(phases[r, s], part.shape, strides)))
        return parts

    def _single_parts(self, cols: Array, phases: Array) -> Views:
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
