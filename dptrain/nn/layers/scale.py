"""Multiplication by a constant."""

from __future__ import annotations

import math

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass


class Scale(Layer):
    """factor * x, for x of any shape. For example, `Scale(1 / 256)` makes logits smaller."""

    kind = "scale"

    def __init__(self, factor: float) -> None:
        if not isinstance(factor, int | float) or not math.isfinite(factor) or factor == 0:
            raise ValueError(f"factor is {factor!r}, expected a finite number other than 0")
        self.factor = factor

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        return np.multiply(x, self.factor, out=call.workspace.array(self.name, "y", x.shape)), None

    def backward(self, dy: Array, saved: None, call: Pass) -> Array:
        dy *= self.factor
        return dy
