"""SiLU."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.functions import logistic
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layers.activation import Activation


class SiLU(Activation):
    """x s with s = 1 / (1 + exp(-x)), also named swish: Elfwing et al. 2018."""

    kind = "silu"

    def compute(self, x: Array, y: Array, derivative: Array | None, workspace: Workspace) -> None:
        s = self.temporary("sigmoid", x, workspace)
        logistic(x, s, workspace)
        np.multiply(x, s, out=y)
        if derivative is not None:
            # f' = s + y (1 - s)
            np.subtract(1, s, out=derivative)
            derivative *= y
            derivative += s
