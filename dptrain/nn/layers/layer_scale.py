"""LayerScale."""

from __future__ import annotations

import math

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass
from dptrain.nn.tensor import Tensor, constant


class LayerScale(Layer):
    """scale * x with a learned factor for each channel: x (..., N, C), scale (C,). Touvron et al. 2021.

    At the end of the body of a `Residual`, a small `initial_value` makes the block almost the identity at first.
    """

    kind = "layer_scale"

    def __init__(self, initial_value: float = 1e-4) -> None:
        if not math.isfinite(initial_value):
            raise ValueError(f"initial_value is {initial_value}, expected a finite number such as 0.0001")
        self.initial_value = initial_value

    def bind(self, input_shape: Shape) -> Shape:
        self.channels = input_shape[0]
        return input_shape

    def tensors(self) -> list[Tensor]:
        return [Tensor("scale", (self.channels,), constant(self.initial_value))]

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array]:
        y = call.workspace.array(self.name, "y", x.shape)
        np.multiply(_rows(x), np.tile(call.parameters["scale"], x.shape[-2]), out=_rows(y))
        return y, x

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array | None:
        products = call.workspace.scratch(self.name, "products", dy.shape)
        np.multiply(dy, saved, out=products)
        by_sample = _rows(products).sum(axis=0)  # pixels first: NumPy adds long rows faster
        by_sample.reshape(dy.shape[-2:]).sum(axis=0, out=call.gradients["scale"])
        if not call.need_dx:
            return None
        rows = _rows(dy)
        rows *= np.tile(call.parameters["scale"], dy.shape[-2])
        return rows.reshape(dy.shape)


def _rows(x: Array) -> Array:
    """(H * W, N * C) or (1, N * C): NumPy computes long rows faster than rows of C values. A copy if not contiguous."""
    return x.reshape(-1, x.shape[-2] * x.shape[-1])
