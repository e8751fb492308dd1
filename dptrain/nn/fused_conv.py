"""Convolution, pooling of 2 x 2 windows, and ReLU if there is one, computed together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import zeros_beyond
from dptrain.nn.layer import Layer, Parameters, Pass
from dptrain.nn.layers.conv import KERNELS, Conv2d, add_up, with_kernels
from dptrain.nn.layers.pool import MaxPool2d


class ConvPoolReLU(Layer):
    """Conv2d, ReLU, MaxPool2d(2) computed as convolution, pooling, bias and ReLU; or Conv2d, MaxPool2d(2) likewise.

    Adding a bias and clipping at 0 are monotonic, also when rounded, so both commute with the maximum to the last bit;
    after pooling they touch a quarter of the values. Gradients are the same too, unless the bias rounds two values of a
    window to the same one.

    The convolution orders its sums by pooling window, (2, 2, ...), so that pooling compares whole blocks. Each strip of
    sums is pooled as soon as it is computed, and so is the gradient in the backward pass.
    """

    def __init__(self, conv: Conv2d, pool: MaxPool2d, *, relu: bool = True) -> None:
        self.conv, self.pool, self.relu = conv, pool, relu
        self.name = conv.name
        self.correlation = conv.correlation_for(2)
        height, width = self.correlation.extent
        self.pooled_extent = (height // 2, width // 2)

    def __repr__(self) -> str:
        return f"{'ConvPoolReLU' if self.relu else 'ConvPool'}({self.conv!r}, {self.pool!r})"

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        return with_kernels(self.correlation, parameters, workspace)

    def set_cache(self, kib: int) -> None:
        self.correlation.set_cache(kib)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        workspace, samples = call.workspace, x.shape[2]
        parameters = with_kernels(self.correlation, call.parameters, workspace)
        channels, height, width = self.pool.output_shape
        y = workspace.array(self.name, "y", (*self.pooled_extent, samples, channels))
        ordered = self.correlation.in_order_of_sums(y)
        masks = self._masks(ordered.shape, workspace)
        # NumPy adds and compares long rows (N, O) faster than rows (O,), and much faster than single numbers.
        zeros = workspace.array(self.name, "zeros", (samples, channels), zeroed=True)
        bias = workspace.array(self.name, "bias", (samples, channels))
        if self.conv.bias:
            np.copyto(bias, parameters["bias"])

        def take(rows: slice, sums: Array) -> None:
            pooled = _pool(sums, masks.of(rows), self.name, workspace)
            if masks.active is None:
                np.add(pooled, bias if self.conv.bias else zeros, out=ordered[rows])
                return
            if self.conv.bias:
                pooled += bias
            np.greater(pooled, 0, out=masks.active[rows])
            np.maximum(pooled, zeros, out=ordered[rows])

        saved = self.correlation.forward_strips(x, parameters[KERNELS], workspace, take)
        return y[:height, :width], (saved, parameters[KERNELS], masks)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        saved, kernels, masks = saved
        workspace = call.workspace
        dy = zeros_beyond(dy, self.pooled_extent, self.name, workspace)
        dpooled = workspace.array(self.name, "dpooled", masks.first_row.shape)
        np.multiply(self.correlation.in_order_of_sums(dy), 1 if masks.active is None else masks.active, out=dpooled)
        if self.conv.bias:
            add_up(dpooled, call.gradients["bias"])

        def give(rows: slice, dsums: Array) -> None:
            _pool_backward(dpooled[rows], masks.of(rows), dsums, self.name, workspace)

        return self.correlation.backward_strips(give, saved, kernels, call)

    def _masks(self, shape: tuple[int, ...], workspace: Workspace) -> Masks:
        """Memory for the masks of pooled values of this shape."""
        shapes = {"first_column": (2, *shape), "first_row": shape} | ({"active": shape} if self.relu else {})
        return Masks(**{name: workspace.array(self.name, name, one, bool) for name, one in shapes.items()})


class Masks(NamedTuple):
    """Of pooling: where the first of two columns has the maximum (2, ...), and where the first of two rows (...).

    Then where the pooled value is above 0 (...), for ReLU.
    """

    first_column: Array
    first_row: Array
    active: Array | None = None

    def of(self, rows: slice) -> Masks:
        """Those of a strip."""
        active = None if self.active is None else self.active[rows]
        return Masks(self.first_column[:, rows], self.first_row[rows], active)


def _pool(sums: Array, masks: Masks, name: str, workspace: Workspace) -> Array:
    """The maximum over the first two axes, of two each; fills the masks.

    Columns are compared first, so that the first of equals in row-major order wins, as in MaxPool2d.
    """
    rows = workspace.scratch(name, "rows", (2, *sums.shape[2:]))
    np.maximum(sums[:, 0], sums[:, 1], out=rows)
    np.equal(sums[:, 0], rows, out=masks.first_column)
    pooled = workspace.scratch(name, "pooled", rows.shape[1:])
    np.maximum(rows[0], rows[1], out=pooled)
    np.equal(rows[0], pooled, out=masks.first_row)
    return pooled


def _pool_backward(dpooled: Array, masks: Masks, dsums: Array, name: str, workspace: Workspace) -> None:
    """Fill dsums: each window's gradient goes to its maximum."""
    drows = workspace.scratch(name, "rows", masks.first_column.shape)
    np.multiply(dpooled, masks.first_row, out=drows[0])
    np.subtract(dpooled, drows[0], out=drows[1])
    np.multiply(drows, masks.first_column, out=dsums[:, 0])
    np.subtract(drows, dsums[:, 0], out=dsums[:, 1])
