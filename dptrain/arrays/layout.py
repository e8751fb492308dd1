"""Names and shapes of the parameters, as views of one flat vector.

Optimizer, reduction and checkpoint hash work on the flat vector; layers on the views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dptrain.arrays.memory import Array

Shape = tuple[int, ...]


def array_shape(sample: Shape, samples: int) -> Shape:
    """Of an array that holds `samples` samples: (H, W, N, C) for samples (C, H, W), (N, F) for samples (F,)."""
    return (*sample[1:], samples, sample[0])


class ParamLayout:
    """Where each parameter lies in the flat vector, in the order given.

    shapes: full name (such as "conv1.weight") to shape.
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
        """Every parameter in its natural shape; writing to a view writes to `flat` (P,)."""
        return {name: flat[part].reshape(self.shapes[name]) for name, part in self.slices.items()}

    def is_weight(self) -> Array:
        """bool (P,): True for what is named "weight", which decays; False for biases and others."""
        mask = np.zeros(self.size, bool)
        for name, part in self.slices.items():
            mask[part] = name.endswith(".weight")
        return mask
