"""dptrain.optim.schedule: the written formulas, PyTorch's curves, and properties of every schedule."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.optim.schedule import NAMES, check_options, make_schedule

LR = 0.3
SOME_STEPS = st.integers(1, 500)
SOME_WARMUP = st.integers(0, 600)
BEGINNING = {"one-cycle": 1 / 25, "triangle": 0.2}  # shares of lr: these schedules begin low by themselves


def test_the_constant_rate_never_changes() -> None:
    schedule = make_schedule("constant", LR, 100)
    assert {schedule(step) for step in range(100)} == {LR}


@given(total=SOME_STEPS, warmup=SOME_WARMUP, every=st.integers(1, 50), factor=st.floats(0.01, 1.0))
def test_step_schedule_drops_by_its_factor_at_every_multiple_of_its_length(
    total: int, warmup: int, every: int, factor: float
) -> None:
    schedule = make_schedule("step", LR, total, warmup_steps=warmup, every=every, factor=factor)
    rate = LR
    for t in range(max(0, total - warmup)):
        if t and t % every == 0:
            rate *= factor
        assert schedule(warmup + t) == pytest.approx(rate, rel=1e-9)


@given(total=SOME_STEPS, warmup=SOME_WARMUP, milestones=st.lists(st.integers(0, 500), min_size=1, max_size=4))
def test_step_schedule_drops_at_its_milestones(total: int, warmup: int, milestones: list[int]) -> None:
    schedule = make_schedule("step", LR, total, warmup_steps=warmup, every=7, milestones=sorted(milestones))
    for step in range(warmup, total):
        drops = sum(milestone <= step for milestone in milestones)
        assert schedule(step) == pytest.approx(LR * 0.1**drops, rel=1e-9)


def test_he_2015_drops_after_32k_and_48k_steps() -> None:
    schedule = make_schedule("step", 0.1, 164 * 391, milestones=[82 * 391, 123 * 391])
    rates = [schedule(step) for step in (0, 31_999, 32_100, 47_900, 48_100, 64_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@given(total=SOME_STEPS, warmup=SOME_WARMUP)
def test_linear_schedule_is_a_line_to_zero(total: int, warmup: int) -> None:
    schedule = make_schedule("linear", LR, total, warmup_steps=warmup)
    for t in range(total - warmup):
        assert schedule(warmup + t) == pytest.approx(LR * (total - warmup - t) / (total - warmup), rel=1e-9)


@given(
    total=st.integers(2, 500),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    peak=st.floats(0, 1) | st.sampled_from([0, 1]),
)
def test_triangle_schedule_interpolates_between_start_peak_and_end(
    total: int, start: float, end: float, peak: float
) -> None:
    schedule = make_schedule("triangle", LR, total, start=start, peak=peak, end=end)
    for step in range(total):
        expected = np.interp(step, [0, peak * total, total], [start, 1, end])
        if 0 < peak < 1 or step > 0:
            assert schedule(step) == pytest.approx(LR * expected, rel=1e-9, abs=1e-9)


def test_page_2019_climbs_for_5_of_24_epochs() -> None:
    schedule = make_schedule("triangle", 0.4, 24 * 98, start=0, peak=5 / 24, end=0)
    rates = [schedule(step) for step in (0, 98, 490, 1421, 2352)]
    assert rates == pytest.approx([0, 0.08, 0.4, 0.2, 0])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cosine", {"milestones": [1]}, "'milestones' is not an option of --schedule cosine; its options: none"),
        ("step", {"peak": 0.5}, "'peak' is not an option of --schedule step; its options: milestones"),
        ("step", {"milestones": 82}, "expected a list of epochs"),
        ("step", {"milestones": [9, 8]}, "in ascending order"),
        ("step", {"milestones": ["a"]}, "expected a list of epochs"),
        ("triangle", {"peak": 1.5}, "peak is 1.5, expected a number from 0 to 1"),
        ("triangle", {"start": [0.5]}, "expected a number from 0 to 1"),
        ("triangle", {"end": -1}, "expected a number from 0 to 1"),
        ("triangle", {"end": math.nan}, "expected a number from 0 to 1"),
        ("triangle", {"end": True}, "expected a number from 0 to 1"),
    ],
)
def test_an_option_that_does_not_fit_the_schedule_is_an_error(
    name: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_options(name, options)
    check_options("step", {"milestones": [82, 122.5]})
    check_options("triangle", {"start": 0, "peak": 0.5, "end": 0.0})


@given(total=SOME_STEPS, warmup=SOME_WARMUP)
def test_cosine_schedule_follows_its_formula(total: int, warmup: int) -> None:
    schedule = make_schedule("cosine", LR, total, warmup_steps=warmup)
    for t in range(total - warmup):
        expected = LR * math.cos(math.pi * t / (2 * (total - warmup))) ** 2  # half-angle form of (1 + cos) / 2
        assert schedule(warmup + t) == pytest.approx(expected, rel=1e-9)


def pytorch_rates(name: str, steps: int) -> list[float]:
    """Learning rates of steps 0 to `steps` (inclusive) of PyTorch's schedule of that kind."""
    import torch  # here, so that the other tests run without it

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if name == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    else:
        # PyTorch puts the peak at step pct_start * total_steps - 1 and the end at total_steps - 1; these values
        # put them at 0.3 * steps and at `steps`. Divisors, 25 and 1e4 more, are its defaults.
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR, total_steps=steps + 1, pct_start=(0.3 * steps + 1) / (steps + 1), cycle_momentum=False
        )
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("warmup", [0, 13])
@pytest.mark.parametrize("steps", [10, 37, 400])
@pytest.mark.parametrize("name", ["cosine", "one-cycle"])
def test_schedules_agree_with_pytorch(name: str, steps: int, warmup: int) -> None:
    schedule = make_schedule(name, LR, warmup + steps, warmup_steps=warmup)
    ours = [schedule(warmup + t) for t in range(steps + 1)]
    assert ours == pytest.approx(pytorch_rates(name, steps), rel=1e-6, abs=1e-9)


def test_one_cycle_starts_at_a_25th_peaks_at_30_percent_and_ends_at_a_250000th() -> None:
    schedule = make_schedule("one-cycle", LR, 1000)
    assert schedule(0) == pytest.approx(LR / 25)
    assert schedule(300) == pytest.approx(LR)
    assert schedule(1000) == pytest.approx(LR / 250_000)
    rates = [schedule(step) for step in range(1001)]
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)


@given(name=st.sampled_from(NAMES), total=SOME_STEPS, warmup=SOME_WARMUP, lr=st.floats(1e-6, 10.0))
def test_warm_up_rises_in_equal_steps_to_the_start_of_the_curve(name: str, total: int, warmup: int, lr: float) -> None:
    schedule = make_schedule(name, lr, total, warmup_steps=warmup)
    for step in range(warmup):
        top = BEGINNING.get(name, 1) * lr
        assert schedule(step) == pytest.approx(top * (step + 1) / warmup)
    assert schedule(warmup) == pytest.approx(BEGINNING.get(name, 1) * lr)


@given(name=st.sampled_from(NAMES), total=SOME_STEPS, warmup=SOME_WARMUP, lr=st.floats(1e-6, 10.0))
def test_every_rate_of_a_run_is_positive_and_at_most_the_peak(name: str, total: int, warmup: int, lr: float) -> None:
    schedule = make_schedule(name, lr, total, warmup_steps=warmup, every=100)
    for step in range(total):
        assert 0 < schedule(step) <= lr * (1 + 1e-12)


def test_rates_do_not_rise_again_after_the_end() -> None:
    for name, end in (("cosine", 0.0), ("one-cycle", LR / 250_000)):
        schedule = make_schedule(name, LR, 50, warmup_steps=5)
        assert schedule(70) == pytest.approx(end, abs=1e-15)
