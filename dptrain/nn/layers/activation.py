"""Activations: functions that are applied to each value alone. ReLU is one; each other has a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, Pass

PIECE = 1 << 14  # values computed at a time: the five arrays of a piece take 320 KiB in float32, and stay in the cache


class Activation(Layer):
    """y = f(x), value by value, for x of any shape. A subclass defines `compute`.

    A forward pass in training also keeps the derivative f'(x): it costs least while x is in the cache, and the backward
    pass is one product.
    """

    derivative_dtype: type | None = None  # that of x, unless given

    def compute(self, x: Array, y: Array, derivative: Array | None, workspace: Workspace) -> None:
        """Write f(x) to y, and f'(x) to `derivative` unless it is None.

        The arrays have the same shape; x is only read. It gets pieces of at most PIECE values: use `self.temporary` for
        intermediate results. A layer that is fused with an activation calls this for pieces of its own.
        """
        raise TypeError(f"{type(self).__name__} does not define compute")

    def temporary(self, purpose: str, x: Array, workspace: Workspace) -> Array:
        """An uninitialised array of the shape of x, for use within `compute`."""
        return workspace.scratch(self.name, f"activation {purpose}", (x.size,)).reshape(x.shape)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        workspace = call.workspace
        y = workspace.array(self.name, "y", x.shape)
        derivative = None
        if call.training:
            derivative = workspace.array(self.name, "derivative", x.shape, self.derivative_dtype)
        flat = np.ascontiguousarray(x).reshape(-1)
        for piece in pieces(x.size):
            part = None if derivative is None else derivative.reshape(-1)[piece]
            self.compute(flat[piece], y.reshape(-1)[piece], part, workspace)
        return y, derivative

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array:
        dy *= saved
        return dy


def pieces(size: int) -> Iterator[slice]:
    """Slices of PIECE values, which cover `size` values."""
    return (slice(start, start + PIECE) for start in range(0, size, PIECE))


class ReLU(Activation):
    """max(x, 0). The derivative at 0 is 0, as in PyTorch."""

    kind = "relu"
    derivative_dtype = bool

    def compute(self, x: Array, y: Array, derivative: Array | None, workspace: Workspace) -> None:
        # With an array of zeros np.maximum takes a third of its time with the number 0.
        np.maximum(x, workspace.array(self.name, "zeros", x.shape, zeroed=True), out=y)
        if derivative is not None:
            np.greater(x, 0, out=derivative)
