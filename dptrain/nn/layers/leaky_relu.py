"""LeakyReLU."""

from __future__ import annotations

import math

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layers.activation import Activation


class LeakyReLU(Activation):
    """x where x is above 0, otherwise negative_slope * x: Maas et al. 2013. The derivative at 0 is `negative_slope`."""

    kind = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not math.isfinite(negative_slope):
            raise ValueError(f"negative_slope is {negative_slope}, expected a finite number such as 0.01")
        self.negative_slope = negative_slope

    def compute(self, x: Array, y: Array, derivative: Array | None, workspace: Workspace) -> None:
        slopes = self.temporary("slopes", x, workspace) if derivative is None else derivative
        np.greater(x, 0, out=y)  # 1 where x is above 0, otherwise 0
        np.subtract(1, y, out=slopes)
        slopes *= self.negative_slope
        slopes += y
        np.multiply(x, slopes, out=y)
