"""Names and shapes of tensors that are views of one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from dptrain.arrays.memory import Array

Shape = tuple[int, ...]


def array_shape(sample: Shape, samples: int) -> Shape:
    """The shape of an array of `samples` samples: (H, W, N, C) for samples (C, H, W), (N, F) for samples (F,)."""
    return (*sample[1:], samples, sample[0])


class Layout:
    """The place of each tensor in a flat vector, in the given order.

    shapes: full name (such as "conv1.weight") to shape. `size` is the length of the vector.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)
        self.slices: dict[str, slice] = {}
        start = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        self.size = start

    def views(self, flat: Array) -> dict[str, Array]:
        """Each tensor of `flat` (size,) in its natural shape; writing to a view writes to `flat`."""
        return {name: flat[part].reshape(self.shapes[name]) for name, part in self.slices.items()}

    def views_by_layer(self, flat: Array) -> dict[str, dict[str, Array]]:
        """The same by the first and last part of the name: views["conv1"]["weight"]."""
        views: dict[str, dict[str, Array]] = {}
        for name, view in self.views(flat).items():
            layer, _, tensor = name.rpartition(".")
            views.setdefault(layer, {})[tensor] = view
        return views

    def expand(self, values: Mapping[str, float | bool], dtype: DTypeLike = np.float32) -> Array:
        """A new vector (size,) in which every element of a tensor has the tensor's value; other tensors have 0."""
        flat = np.zeros(self.size, dtype)
        for name, value in values.items():
            flat[self.slices[name]] = value
        return flat
