"""Where a network joins neighbouring layers for speed; `fuse` is the only place that decides it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from dptrain.nn.activation import ReLU
from dptrain.nn.conv import Conv2d
from dptrain.nn.layer import Layer, Parameters, Shape
from dptrain.nn.pool import MaxPool2d
from dptrain.nn.workspace import Array, Workspace


class ConvPoolReLU(Layer):
    """Conv2d, ReLU, MaxPool2d computed as convolution, pooling, bias and ReLU.

    Adding a bias and clipping at 0 are monotonic, and floating-point addition rounds monotonically, so both
    commute with the maximum to the last bit; done after pooling they touch a fraction of the values. Gradients
    are the same too, unless rounding makes two values of a window equal that were not before the bias.
    """

    def __init__(self, conv: Conv2d, pool: MaxPool2d) -> None:
        self.conv, self.pool = conv, pool
        self.name = conv.name

    def __repr__(self) -> str:
        return f"ConvPoolReLU({self.conv!r}, {self.pool!r})"

    def parameter_shapes(self) -> dict[str, Shape]:
        return self.conv.parameter_shapes()

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Any]:
        sums, cols = self.conv.correlate(x, parameters, workspace)
        y, masks = self.pool.forward(sums, {}, workspace)
        y += parameters["bias"][:, None, None, None]
        np.maximum(y, 0, out=y)
        return y, (cols, masks, y)

    def backward(
        self,
        dy: Array,
        saved: Any,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array | None:
        cols, masks, y = saved
        active = np.greater(y, 0, out=workspace.array(self.name, "active", y.shape, bool))
        dpooled = np.multiply(dy, active, out=workspace.array(self.name, "dpooled", y.shape))
        dpooled.reshape(len(dpooled), -1).sum(axis=1, out=gradients["bias"])
        dsums = self.pool.backward(dpooled, masks, {}, {}, workspace)
        return self.conv.correlate_backward(dsums, cols, parameters, gradients, workspace, need_dx)


def fuse(layers: list[Layer]) -> list[Layer]:
    """The layers as they are computed: every Conv2d, ReLU, MaxPool2d in a row becomes one ConvPoolReLU."""
    joined: list[Layer] = []
    position = 0
    while position < len(layers):
        three = layers[position : position + 3]
        # Exactly these: a user's subclass computes something else.
        if [type(layer) for layer in three] == [Conv2d, ReLU, MaxPool2d]:
            joined.append(ConvPoolReLU(cast(Conv2d, three[0]), cast(MaxPool2d, three[2])))
            position += 3
        else:
            joined.append(layers[position])
            position += 1
    return joined
