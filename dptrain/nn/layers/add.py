"""The sum of several inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.nn.layer import Layer
from dptrain.nn.passes import Pass


class Add(Layer):
    """The sum of inputs of one shape; x and dx are tuples of arrays, one for each input."""

    kind = "add"

    def bind(self, input_shape: Any) -> Shape:
        """ValueError unless all shapes of the tuple `input_shape` are equal."""
        first: Shape = input_shape[0]
        if any(shape != first for shape in input_shape):
            raise ValueError(
                f"{self!r} has inputs of the shapes {' and '.join(map(str, input_shape))}, expected equal shapes: give "
                "Residual a shortcut that makes them equal, such as Conv2d(CHANNELS, 1, stride=2)"
            )
        return first

    def forward(self, x: Any, call: Pass) -> tuple[Array, int]:
        y = np.add(x[0], x[1], out=call.workspace.array(self.name, "y", x[0].shape))
        for more in x[2:]:
            y += more
        return y, len(x)

    def backward(self, dy: Array, saved: int, call: Pass) -> Any:
        copies = [call.workspace.array(self.name, f"dx{number}", dy.shape) for number in range(1, saved)]
        for copy in copies:  # each input has its own array, which the layers before may overwrite
            np.copyto(copy, dy)
        return (dy, *copies)
