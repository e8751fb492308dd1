"""dptrain.optim.schedule: the written formulas, PyTorch's curves, and properties of every schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.optim.schedule import NAMES, make_schedule

LR = 0.3
SOME_STEPS = st.integers(1, 500)
SOME_WARMUP = st.integers(0, 600)


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
        top = lr / 25 if name == "one-cycle" else lr  # one-cycle begins low by itself
        assert schedule(step) == pytest.approx(top * (step + 1) / warmup)
    assert schedule(warmup) == pytest.approx(lr / 25 if name == "one-cycle" else lr)


@given(name=st.sampled_from(NAMES), total=SOME_STEPS, warmup=SOME_WARMUP, lr=st.floats(1e-6, 10.0))
def test_every_rate_of_a_run_is_positive_and_at_most_the_peak(name: str, total: int, warmup: int, lr: float) -> None:
    schedule = make_schedule(name, lr, total, warmup_steps=warmup, every=100)
    for step in range(total):
        assert 0 < schedule(step) <= lr * (1 + 1e-12)


def test_rates_do_not_rise_again_after_the_end() -> None:
    for name, end in (("cosine", 0.0), ("one-cycle", LR / 250_000)):
        schedule = make_schedule(name, LR, 50, warmup_steps=5)
        assert schedule(70) == pytest.approx(end, abs=1e-15)
