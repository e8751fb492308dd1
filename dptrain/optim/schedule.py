"""Learning rates: a schedule is a function from the step (0, 1, ...) to the learning rate of that step.

A schedule begins with a linear warm-up of w steps, curve(0) * (step + 1) / w, and follows its curve over the T
remaining steps, with t = step - w:

    constant   lr
    step       lr * factor ** floor(t / every), or with milestones lr * factor ** (how many of them are <= step)
    linear     lr * (1 - t / T)
    triangle   line from start * lr up to lr at t = peak * T,      Page 2019, Jordan 2024
               line down to end * lr at T
    cosine     lr * (1 + cos(pi * t / T)) / 2                      Loshchilov and Hutter 2017, one period
    one-cycle  cosine from lr / 25 up to lr over the first 30 %,   Smith and Topin 2018, with the cosine
               cosine down to lr / 250,000 over the rest           annealing and constants of PyTorch
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dptrain.arrays.scalars import falling_cosine, power

Schedule = Callable[[int], float]

NAMES = ("constant", "step", "linear", "triangle", "cosine", "one-cycle")
OPTIONS = {"step": ("milestones",), "triangle": ("start", "peak", "end")}  # besides those that are flags
LAST_STEP = 1 << 62  # of a number of epochs without end
RISE = 0.3  # share of a one-cycle schedule that climbs


def make_schedule(
    name: str,
    lr: float,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    every: int = 1,
    factor: float = 0.1,
    milestones: Sequence[int] = (),
    start: float = 0.2,
    peak: float = 0.23,
    end: float = 0.07,
) -> Schedule:
    """The schedule of a name over `total_steps`, warm-up included.

    `every`, `factor` and `milestones` (in steps of the run, ascending) are for "step"; `start` and `end` (factors of
    lr) and `peak` (from 0 to 1) are for "triangle".
    """
    remaining = max(1, total_steps - warmup_steps)
    curves: dict[str, Schedule] = {
        "constant": lambda t: lr,
        "step": lambda t: lr * power(factor, bisect_right(milestones, t + warmup_steps) if milestones else t // every),
        "linear": lambda t: lr * (1 - min(t / remaining, 1.0)),
        "triangle": lambda t: _triangle(lr, t / remaining, start, peak, end),
        "cosine": lambda t: _cosine(lr, 0.0, t / remaining),
        "one-cycle": lambda t: _one_cycle(lr, t / remaining),
    }
    curve = curves[name]

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return curve(0) * (step + 1) / warmup_steps
        return curve(step - warmup_steps)

    return schedule


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """The number of steps of so many epochs, which may be a fraction, rounded."""
    return round(min(epochs * steps_per_epoch, LAST_STEP))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """ValueError unless the schedule takes these options: "milestones" (here in epochs), "start", "peak", "end"."""
    for option, value in options.items():
        if option not in OPTIONS.get(name, ()):
            known = ", ".join(OPTIONS.get(name, ())) or "none"
            raise ValueError(f"{option!r} is not an option of --schedule {name}; its options: {known}")
        if option == "milestones":
            if not (isinstance(value, list | tuple) and all(map(_is_number, value)) and list(value) == sorted(value)):
                raise ValueError(
                    f"milestones is {value!r}, expected a list of epochs in ascending order, such as [82, 123]"
                )
        elif not (_is_number(value) and value <= 1):
            raise ValueError(f"{option} is {value!r}, expected a number from 0 to 1")


def _is_number(value: Any) -> bool:
    """Whether it is finite and at least 0."""
    return type(value) in (int, float) and 0 <= value < math.inf


def _triangle(lr: float, progress: float, start: float, peak: float, end: float) -> float:
    if progress < peak:
        return lr * (start + (1 - start) * progress / peak)
    return lr * (end + (1 - end) * max(0.0, 1 - progress) / (1 - peak)) if peak < 1 else lr


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1 and beyond."""
    return end + (start - end) * falling_cosine(min(progress, 1.0))


def _one_cycle(lr: float, progress: float) -> float:
    if progress < RISE:
        return _cosine(lr / 25, lr, progress / RISE)
    return _cosine(lr, lr / 250_000, (progress - RISE) / (1 - RISE))
