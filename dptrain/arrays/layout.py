"""Names and shapes of the parameters, as views of one flat vector.

Optimizer, reduction and checkpoint hash work on the flat vector; layers on the views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dptrain.arrays.memory import Array


class ParamLayout:
    """Where each parameter lies in the flat vector, in the order given.

    shapes: full name (such as "conv1.weight") to shape.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
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
