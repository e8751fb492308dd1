"""The fully connected layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer, Pass, whole_number
from dptrain.nn.tensor import Init, Tensor, he_uniform, zeros


class Linear(Layer):
    """x (N, F) @ weight (O, F)', plus bias (O,) unless `bias` is False, giving (N, O).

    The weight begins as `init(F)`.
    """

    kind = "linear"
    unspecified = ("init",)

    def __init__(self, out_features: int, *, bias: bool = True, init: Callable[[int], Init] = he_uniform) -> None:
        self.out_features = whole_number(out_features, "out_features")
        self.bias, self.init = bias, init

    def bind(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise ValueError(f"{self!r} needs flat features (F,), it gets {input_shape}: put Flatten() before it")
        self.in_features = input_shape[0]
        return (self.out_features,)

    def tensors(self) -> list[Tensor]:
        shape = (self.out_features, self.in_features)
        weight = Tensor("weight", shape, self.init(self.in_features))
        return [weight, Tensor("bias", shape[:1], zeros)] if self.bias else [weight]

    def forward_flops(self) -> int:
        return 2 * self.in_features * self.out_features

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array]:
        y = call.workspace.array(self.name, "y", (len(x), self.out_features))
        np.matmul(x, call.parameters["weight"].T, out=y)
        if self.bias:
            y += call.parameters["bias"]
        return y, x

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array | None:
        np.matmul(dy.T, saved, out=call.gradients["weight"])
        if self.bias:
            dy.sum(axis=0, out=call.gradients["bias"])
        if not call.need_dx:
            return None
        return np.matmul(dy, call.parameters["weight"], out=call.workspace.array(self.name, "dx", saved.shape))
