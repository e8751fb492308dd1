"""Convolution, ReLU and pooling of 2 x 2 windows, computed together."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import zeros_beyond
from dptrain.nn.layer import Layer, Parameters, Pass
from dptrain.nn.layers.conv import KERNELS, Conv2d, add_up, with_kernels
from dptrain.nn.layers.pool import MaxPool2d


class ConvPoolReLU(Layer):
    """Conv2d, ReLU, MaxPool2d(2) computed as convolution, pooling, bias and ReLU.

    Adding a bias and clipping at 0 are monotonic, also when rounded, so both commute with the maximum to the last bit;
    after pooling they touch a quarter of the values. Gradients are the same too, unless the bias rounds two values of a
    window to the same one.

    The convolution orders its sums by pooling window, (2, 2, ...), so that pooling compares whole blocks.
    """

    def __init__(self, conv: Conv2d, pool: MaxPool2d) -> None:
        self.conv, self.pool = conv, pool
        self.name = conv.name
        self.correlation = conv.correlation_for(2)
        height, width = self.correlation.extent
        self.pooled_extent = (height // 2, width // 2)

    def __repr__(self) -> str:
        return f"ConvPoolReLU({self.conv!r}, {self.pool!r})"

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        return with_kernels(self.correlation, parameters, workspace)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        workspace = call.workspace
        parameters = with_kernels(self.correlation, call.parameters, workspace)
        sums, saved = self.correlation.forward(x, parameters[KERNELS], workspace)
        pooled, masks = self._pool(sums, workspace)
        if self.conv.bias:
            pooled += parameters["bias"]
        active = np.greater(pooled, 0, out=workspace.array(self.name, "active", pooled.shape, bool))
        channels, height, width = self.pool.output_shape
        y = workspace.array(self.name, "y", (*self.pooled_extent, x.shape[2], channels))
        np.maximum(pooled, 0, out=self.correlation.in_order_of_sums(y))
        return y[:height, :width], (sums, saved, parameters[KERNELS], masks, active)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        sums, saved, kernels, masks, active = saved
        workspace = call.workspace
        dy = zeros_beyond(dy, self.pooled_extent, self.name, workspace)
        dpooled = workspace.scratch(self.name, "pooled", active.shape)
        np.multiply(self.correlation.in_order_of_sums(dy), active, out=dpooled)
        if self.conv.bias:
            add_up(dpooled, call.gradients["bias"])
        self._pool_backward(dpooled, masks, sums, workspace)
        return self.correlation.backward(sums, saved, kernels, call)

    def _pool(self, sums: Array, workspace: Workspace) -> tuple[Array, tuple[Array, Array]]:
        """The maximum over the first two axes, of two each, and masks of where the first of two wins.

        Columns are compared first, so that the first of equals in row-major order wins, as in MaxPool2d.
        """
        rows = workspace.scratch(self.name, "rows", (2, *sums.shape[2:]))
        first_column = workspace.array(self.name, "first column", rows.shape, bool)
        np.maximum(sums[:, 0], sums[:, 1], out=rows)
        np.equal(sums[:, 0], rows, out=first_column)
        pooled = workspace.scratch(self.name, "pooled", rows.shape[1:])
        first_row = workspace.array(self.name, "first row", pooled.shape, bool)
        np.maximum(rows[0], rows[1], out=pooled)
        np.equal(rows[0], pooled, out=first_row)
        return pooled, (first_column, first_row)

    def _pool_backward(self, dpooled: Array, masks: tuple[Array, Array], dsums: Array, workspace: Workspace) -> None:
        """Fill dsums: each window's gradient goes to its maximum."""
        first_column, first_row = masks
        drows = workspace.scratch(self.name, "rows", first_column.shape)
        np.multiply(dpooled, first_row, out=drows[0])
        np.subtract(dpooled, drows[0], out=drows[1])
        np.multiply(drows, first_column, out=dsums[:, 0])
        np.subtract(drows, dsums[:, 0], out=dsums[:, 1])
