"""The fully connected layer."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, Parameters


class Linear(Layer):
    """x (N, F) @ weight (O, F)' + bias (O,), giving (N, O)."""

    kind = "linear"

    def __init__(self, out_features: int) -> None:
        if out_features < 1:
            raise ValueError(f"out_features is {out_features}, expected at least 1")
        self.out_features = out_features

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out_features})"

    def bind(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 1:
            raise ValueError(f"{self!r} needs flat features (F,), it gets {input_shape}: put Flatten() before it")
        self.in_features = input_shape[0]
        return (self.out_features,)

    def parameter_shapes(self) -> dict[str, Shape]:
        return {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}

    def fan_in(self) -> int:
        return self.in_features

    def forward_flops(self) -> int:
        return 2 * self.in_features * self.out_features

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Array]:
        y = workspace.array(self.name, "y", (len(x), self.out_features))
        np.matmul(x, parameters["weight"].T, out=y)
        y += parameters["bias"]
        return y, x

    def backward(
        self,
        dy: Array,
        saved: Array,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array | None:
        np.matmul(dy.T, saved, out=gradients["weight"])
        dy.sum(axis=0, out=gradients["bias"])
        if not need_dx:
            return None
        return np.matmul(dy, parameters["weight"], out=workspace.array(self.name, "dx", saved.shape))
