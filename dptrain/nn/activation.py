"""ReLU and Flatten: the layers that only reshape or clip."""

from __future__ import annotations

import math

import numpy as np

from dptrain.nn.layer import Layer, Parameters, Shape
from dptrain.nn.workspace import Array, Workspace


class ReLU(Layer):
    """max(x, 0), any shape. The gradient at 0 is 0, as in PyTorch."""

    kind = "relu"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Array]:
        y = np.maximum(x, 0, out=workspace.array(self.name, "y", x.shape))
        return y, y

    def backward(
        self,
        dy: Array,
        saved: Array,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array:
        active = np.greater(saved, 0, out=workspace.array(self.name, "active", saved.shape, bool))
        return np.multiply(dy, active, out=workspace.array(self.name, "dx", saved.shape))


class Flatten(Layer):
    """(C, H, W, N) to (C * H * W, N): a view, nothing moves."""

    kind = "flatten"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def bind(self, input_shape: Shape) -> Shape:
        self.input_shape = input_shape
        return (math.prod(input_shape),)

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, None]:
        return x.reshape(-1, x.shape[-1]), None

    def backward(
        self,
        dy: Array,
        saved: None,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array:
        return dy.reshape(*self.input_shape, dy.shape[-1])
