"""Powers and cosines of Python's floats: the same bits on every machine. The C library's differ between versions.

This module does not import NumPy: schedules are read by the launcher, too.
"""

from __future__ import annotations

import math


def power(base: float, exponent: int) -> float:
    """base^exponent for a whole exponent, by squaring."""
    result, square = 1.0, base
    for bit in reversed(f"{abs(exponent):b}"):
        if bit == "1":
            result *= square
        square *= square
    return result if exponent >= 0 else 1 / result


def falling_cosine(progress: float) -> float:
    """(1 + cos(pi * progress)) / 2 for progress from 0 to 1, which falls from 1 to 0.

    This is 1/2 - sin(x) / 2 with x = pi (progress - 1/2), by the Taylor series: |x| <= pi / 2 needs 11 terms.
    """
    x = math.pi * (progress - 0.5)
    term = total = x
    for k in range(2, 24, 2):
        term *= -x * x / (k * (k + 1))
        total += term
    return min(1.0, max(0.0, 0.5 - 0.5 * total))
