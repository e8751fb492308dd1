"""A network as a function, and one with a layer of a user, for tests of the Python API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain import Run
from dptrain.nn import Activation, Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU

Trained = Callable[..., Run]


def build(shape: tuple[int, int, int], classes: int, width: int = 4) -> list[Layer]:
    """A small network."""
    return [Conv2d(width, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(classes)]


class Times(Activation):
    """x times a number that belongs to the class, so that no checkpoint can know it."""

    kind = "times"
    factor = 1.0

    def compute(self, x: Any, y: Any, derivative: Any, workspace: Any) -> None:
        np.multiply(x, np.float32(self.factor), out=y)
        if derivative is not None:
            derivative[...] = self.factor


def build_times(shape: tuple[int, int, int], classes: int) -> list[Layer]:
    return [Conv2d(4, 3, padding=1), Times(), MaxPool2d(2), Flatten(), Linear(classes)]
