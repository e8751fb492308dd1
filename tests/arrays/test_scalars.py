"""Portable powers and cosines against the exact values."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.arrays.scalars import falling_cosine, power


@given(st.floats(0.5, 1.5), st.integers(-60, 60))
def test_powers_are_accurate(base: float, exponent: int) -> None:
    assert power(base, exponent) == pytest.approx(float(Fraction(base) ** exponent), rel=1e-14)


def test_powers_for_the_bias_correction_of_any_step() -> None:
    assert power(0.9, 0) == 1
    assert power(0.999, 10**9) == 0
    assert power(0.0, 5) == 0


@given(st.floats(0, 1))
def test_the_falling_cosine_is_accurate(progress: float) -> None:
    assert falling_cosine(progress) == pytest.approx((1 + math.cos(math.pi * progress)) / 2, abs=4e-16)


def test_the_falling_cosine_stays_from_1_to_0() -> None:
    assert falling_cosine(0.0) == 1
    assert 0 <= falling_cosine(1.0) < 1e-16
    values = [falling_cosine(step / 1000) for step in range(1001)]
    assert values == sorted(values, reverse=True)
