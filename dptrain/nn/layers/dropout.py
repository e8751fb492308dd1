"""Dropout."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass


class Dropout(Layer):
    """In training, sets each value to 0 with probability p and divides the others by 1 - p (Srivastava et al. 2014).

    An evaluation changes nothing. The draws depend on the seed, the epoch, and the sample's place in its shard's order.
    """

    kind = "dropout"

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}, expected a probability below 1")
        self.p = p

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array | None]:
        if not call.training:
            return x, None
        factors = call.uniform(x.shape)
        np.greater_equal(factors, self.p, out=factors)
        factors *= 1 / (1 - self.p)
        return np.multiply(x, factors, out=call.workspace.array(self.name, "y", x.shape)), factors

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array:
        dy *= saved
        return dy
