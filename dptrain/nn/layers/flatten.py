"""Reordering of feature maps as features."""

from __future__ import annotations

import math

import numpy as np

from dptrain.arrays.layout import Shape, array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, Pass


class Flatten(Layer):
    """(H, W, N, C) to (N, C * H * W), features in the order of channel, height, width as in PyTorch."""

    kind = "flatten"

    def bind(self, input_shape: Shape) -> Shape:
        self.input_shape = input_shape
        return (math.prod(input_shape),)

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        samples_first = self._samples_first(x.shape[-2], call.workspace)
        np.copyto(samples_first, x.transpose(-2, *range(x.ndim - 2), -1))
        y = call.workspace.array(self.name, "y", (len(samples_first), math.prod(self.input_shape)))
        np.copyto(self._as_planes(y), samples_first)
        return y, None

    def backward(self, dy: Array, saved: None, call: Pass) -> Array:
        samples_first = self._samples_first(len(dy), call.workspace)
        np.copyto(samples_first, self._as_planes(dy))
        dx = call.workspace.array(self.name, "dx", array_shape(self.input_shape, len(dy)))
        np.copyto(dx.transpose(-2, *range(dx.ndim - 2), -1), samples_first)
        return dx

    def _as_planes(self, features: Array) -> Array:
        """Features (N, C * H * W) as a view (N, H, W, C)."""
        planes = features.reshape(-1, *self.input_shape)
        return planes.transpose(0, *range(2, planes.ndim), 1)

    def _samples_first(self, samples: int, workspace: Workspace) -> Array:
        """(N, H, W, C), the step between: two copies with short strides take a fifth of the time of one."""
        channels, *extents = self.input_shape
        return workspace.scratch(self.name, "samples first", (samples, *extents, channels))
