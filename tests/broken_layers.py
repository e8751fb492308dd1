"""A user's network that breaks in a chosen place, for chosen microbatches only.

--model tests/broken_layers.py:build --model-options 'place = "trap2", how = "output", microbatches = ["..."]'

how: "output" (a NaN), "input gradient" (a NaN), or "gradient" (the same, and the parameter's is infinite).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn import Conv2d, Flatten, Layer, Linear, Pass, Tensor, zeros

PLACES = ("trap1", "trap2", "trap3")


def fingerprint(images: Array) -> str:
    """Identifies a microbatch."""
    return hashlib.sha256(images.tobytes()).hexdigest()


class Recogniser(Layer):
    """Returns its input, and notes in the workspace whether this microbatch must break."""

    kind = "recogniser"

    def __init__(self, microbatches: list[str]) -> None:
        self.microbatches = microbatches

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        sprung(call.workspace)[0] = fingerprint(x) in self.microbatches
        return x, None


def sprung(workspace: Workspace) -> Array:
    return workspace.array("recogniser", "sprung", (1,), bool)


class Trap(Layer):
    """x * (1 + slope), broken if it has the chosen name."""

    kind = "trap"

    def __init__(self, place: str, how: str) -> None:
        self.place, self.how = place, how

    def tensors(self) -> list[Tensor]:
        return [Tensor("slope", (1,), zeros)]

    def breaks(self, how: str, workspace: Workspace) -> bool:
        return (self.name, how) == (self.place, self.how) and bool(sprung(workspace)[0])

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array]:
        y = x * (1 + call.parameters["slope"])
        if self.breaks("output", call.workspace):
            y.flat[-1] = np.nan
        return y, x

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array:
        call.gradients["slope"][0] = (dy * saved).sum()
        dx: Array = dy * (1 + call.parameters["slope"])
        if self.breaks("gradient", call.workspace):
            call.gradients["slope"][0] = np.inf
        if self.breaks("gradient", call.workspace) or self.breaks("input gradient", call.workspace):
            dx.flat[0] = np.nan
        return dx


def build(input_shape: Any, classes: int, *, place: str, how: str, microbatches: list[str]) -> list[Layer]:
    first, second, third = (Trap(place, how) for _ in PLACES)
    convolution = Conv2d(2, padding=1)
    return [Recogniser(microbatches), convolution, first, Flatten(), second, Linear(4), third, Linear(classes)]
