"""GELU."""

from __future__ import annotations

import math

import numpy as np

from dptrain.arrays.functions import logistic
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layers.activation import Activation

SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


class GELU(Activation):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): Hendrycks and Gimpel 2016; PyTorch's approximate="tanh".

    Computed as x s with s = 1 / (1 + exp(-g)) and g = 2 sqrt(2 / pi) (x + 0.044715 x^3), which is the same.
    """

    kind = "gelu"

    def compute(self, x: Array, y: Array, derivative: Array | None, workspace: Workspace) -> None:
        s = self.temporary("sigmoid", x, workspace)
        square = self.temporary("square", x, workspace)
        np.multiply(x, x, out=square)
        np.multiply(square, SLOPE * CUBIC, out=s)
        s += SLOPE
        s *= x  # g
        logistic(s, s, workspace)
        np.multiply(x, s, out=y)
        if derivative is not None:
            # f' = s + y (1 - s) g'
            np.multiply(square, 3 * SLOPE * CUBIC, out=derivative)
            derivative += SLOPE
            derivative *= y
            np.subtract(1, s, out=square)
            derivative *= square
            derivative += s
