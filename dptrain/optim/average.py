"""Averages of parameters and buffers over the steps of training. An evaluation uses them in place of the raw ones.

Buffers, such as the running statistics of batch normalisation, are averaged by the same rule as the parameters: those
of the raw parameters of a single step would not fit the average.

A new average is one class here and one line in AVERAGES. Its options are keyword arguments with default values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from dptrain.arrays import scalars
from dptrain.arrays.memory import Array

AVERAGED = {"parameters": "average", "buffers": "average_buffers"}  # the vectors, and their averages


class Average(ABC):
    """Keeps the averages, named vectors that begin as copies of the initial parameters and buffers.

    `total_steps` is the number of steps of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def update(self, vectors: Mapping[str, Array], step: int) -> None:
        """Make update `step` (0, 1, ...), after that of the optimizer and of the buffers."""
        for raw, average in AVERAGED.items():
            self.move(vectors[average], vectors[raw], step)

    @abstractmethod
    def move(self, average: Array, raw: Array, step: int) -> None:
        """Update one average, in place."""


class EMA(Average):
    """Exponential moving average.

    average += (1 - d) * (raw - average),      d = min(decay, (1 + t) / (10 + t)) at step t

    The smaller d of the first steps, as in TensorFlow, keeps the initial parameters from staying in the average.
    """

    def __init__(self, total_steps: int, *, decay: float = 0.999) -> None:
        super().__init__(total_steps)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected 0 <= decay < 1")
        self.decay = decay

    def move(self, average: Array, raw: Array, step: int) -> None:
        change = raw - average
        change *= 1 - min(self.decay, (1 + step) / (10 + step))
        average += change


class Lookahead(Average):
    """Lookahead (Zhang et al. 2019): the average leads, and training continues from it.

    After every `every` steps: average += a * (raw - average), then raw = average

    a is `alpha`, or with a power above 0 falls from 1 to `alpha` over the run, as airbench's share (Jordan 2024):
    a = 1 - (1 - alpha) * (t / total_steps)^power after t steps.
    """

    def __init__(self, total_steps: int, *, every: int = 5, alpha: float = 0.5, power: int = 0) -> None:
        super().__init__(total_steps)
        if not (isinstance(every, int) and every >= 1 and 0 < alpha <= 1):
            raise ValueError(f"every is {every} and alpha {alpha}, expected at least 1 and 0 < alpha <= 1")
        if power < 0:
            raise ValueError(f"power is {power}, expected 0 or more")
        self.every, self.alpha, self.power = every, alpha, power

    def move(self, average: Array, raw: Array, step: int) -> None:
        if (step + 1) % self.every == 0:
            share = 1 - (1 - self.alpha) * scalars.power(min(1, (step + 1) / self.total_steps), self.power)
            average += np.multiply(raw - average, share)
            raw[...] = average


AVERAGES = {"ema": EMA, "lookahead": Lookahead}


def make_average(name: str, options: Mapping[str, Any], total_steps: int) -> Average | None:
    """The average of a name, or None for "none"; ValueError for an option out of range."""
    if name == "none":
        if options:
            raise ValueError("there is no average; choose one with --average")
        return None
    kind: Any = AVERAGES[name]
    average: Average = kind(total_steps, **options)
    return average
