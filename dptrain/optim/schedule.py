"""Learning rates: a schedule is a function from the step (0, 1, ...) to the learning rate of that step.

A schedule begins with a linear warm-up of w steps, curve(0) * (step + 1) / w, and follows its curve over the T
remaining steps, with t = step - w:

    constant   lr
    step       lr * factor ** floor(t / every)
    cosine     lr * (1 + cos(pi * t / T)) / 2                      Loshchilov and Hutter 2017, one period
    one-cycle  cosine from lr / 25 up to lr over the first 30 %,   Smith and Topin 2018, with the cosine
               cosine down to lr / 250,000 over the rest           annealing and constants of PyTorch
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]

NAMES = ("constant", "step", "cosine", "one-cycle")
RISE = 0.3  # share of a one-cycle schedule that climbs


def make_schedule(
    name: str, lr: float, total_steps: int, *, warmup_steps: int = 0, every: int = 1, factor: float = 0.1
) -> Schedule:
    """The schedule of a name over `total_steps`, warm-up included. `every` (in steps) and `factor` are for "step"."""
    remaining = max(1, total_steps - warmup_steps)
    curves: dict[str, Schedule] = {
        "constant": lambda t: lr,
        "step": lambda t: lr * factor ** (t // every),
        "cosine": lambda t: _cosine(lr, 0.0, t / remaining),
        "one-cycle": lambda t: _one_cycle(lr, t / remaining),
    }
    curve = curves[name]

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return curve(0) * (step + 1) / warmup_steps
        return curve(step - warmup_steps)

    return schedule


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1 and beyond."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _one_cycle(lr: float, progress: float) -> float:
    if progress < RISE:
        return _cosine(lr / 25, lr, progress / RISE)
    return _cosine(lr, lr / 250_000, (progress - RISE) / (1 - RISE))
