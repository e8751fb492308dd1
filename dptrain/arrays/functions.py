"""exp, log, tanh and the logistic function of float32 and float64 arrays: the same bits on every CPU.

NumPy's own functions give other last bits on CPUs with AVX2, with AVX-512 and without. The functions here are made of
additions, multiplications, divisions and integer operations, one NumPy call each. IEEE 754 defines the results of
these to the bit, and two calls are never fused into one multiply-add.

exp, tanh and logistic share one reduction and one series. With n, the integer nearest to x / ln 2:

    x = n ln 2 + r,  |r| <= ln 2 / 2       ln 2 in two parts, so that n times the first is exact  (Cody and Waite 1980)
    w = r / tanh(r / 2) = 2 + r^2 / 6 - r^4 / 360 + ...                                  an even series

    exp(x)      = 2^n (w + r) / (w - r) = 2^(n + 1) (1/2 + r / (w - r))
    tanh(x / 2) = (A + v) / (1 + A v)                   A = tanh(n ln 2 / 2) = (2^n - 1) / (2^n + 1),  v = r / w
    logistic(x) = 2^n (w + r) / (w - r + 2^n (w + r))

The coefficients of w are those of fdlibm (Sun Microsystems 1993; float32 by I. L. Taylor). Errors are at most 2 units
in the last place (tanh, logistic and log of float64: 3). An element's result does not depend on other elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from dptrain.arrays.memory import Array, Workspace

PIECE = 16384  # elements computed at a time: five arrays of this length fit 512 KiB of second-level cache
SCRATCH = 3  # arrays for intermediate results


class Format:
    """Constants of a floating-point format. Arrays of no dimension: with Python's numbers NumPy's calls take longer."""

    def __init__(
        self,
        real: DTypeLike,
        *,
        mantissa: int,
        bias: int,
        ln2: tuple[float, float],
        w: tuple[float, ...],
        log_terms: int,
    ) -> None:
        """Bits of the mantissa, bias of the exponent, the two parts of ln 2, coefficients of w by powers of r^2."""

        def number(value: float) -> Array:
            return np.array(value, real)

        self.integer = np.dtype(f"i{np.dtype(real).itemsize}")  # of the same size
        self.bias = np.array(bias, self.integer)
        self.to_exponent = np.array(1 << mantissa, self.integer)  # an integer times this is at the exponent's place
        self.ln2_high, self.ln2_low = map(number, ln2)
        self.log2_e = number(1 / sum(ln2))
        self.w = [number(one) for one in reversed(w)]
        self.log = [np.array(2 / (2 * j + 1)) for j in reversed(range(log_terms))]  # always float64, see `log`
        self.half, self.one = map(number, (0.5, 1))
        # x + this has the integer nearest to x in its lowest bits, plus 1 or plus the bias.
        self.rounding_1, self.rounding_bias = (number(1.5 * 2.0**mantissa + offset) for offset in (1, bias))

        self.normal = (bias - 1) * ln2[0] - 0.01  # exp(x) is a normal number for x from minus to plus this
        self.all_normal = number(-self.normal), number(self.normal)
        border = (bias + mantissa + 3) * ln2[0]  # exp(x) is 0 or infinite beyond it
        self.all_exp = number(-border), number(border)
        self.all_tanh = number(-mantissa / 2), number(mantissa / 2)  # tanh(x) is -1 or 1 beyond these


FORMATS = {
    np.dtype(np.float32): Format(
        np.float32,
        mantissa=23,
        bias=127,
        ln2=(6.9314575195e-01, 1.4286067653e-06),
        w=(2.0, 1.6666625440e-1, -2.7667332906e-3),
        log_terms=5,
    ),
    np.dtype(np.float64): Format(
        np.float64,
        mantissa=52,
        bias=1023,
        ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
        w=(
            2.0,
            1.66666666666666019037e-01,
            -2.77777777770155933842e-03,
            6.61375632143793436117e-05,
            -1.65339022054652515390e-06,
            4.13813679705723846039e-08,
        ),
        log_terms=11,
    ),
}

# For log, which computes in float64.
SMALLEST, LARGE = 2.0**-1022, 2.0**52  # the smallest normal number; a factor that makes all smaller ones normal
ONE, LN2, LOG_LARGE = np.array(1.0), np.array(0.6931471805599453), 36.04365338911715  # LOG_LARGE = 52 LN2
MANTISSA, ROOT_HALF = np.array(52), np.array(0.5**0.5).view(np.int64)  # ROOT_HALF: the bits of 1 / sqrt(2)


def exp(x: Array, out: Array | None = None, workspace: Workspace | None = None) -> Array:
    """e^x, any shape. `out` may be x. A `workspace` of x's dtype keeps the memory of intermediate results."""
    return _in_pieces(_exp, x, out, workspace)


def log(x: Array) -> Array:
    """The natural logarithm, in new memory: -inf at 0, NaN below. For small arrays, such as one number a sample.

    x = 2^k m with m from 1 / sqrt(2) to sqrt(2), and log(m) = 2 (s + s^3 / 3 + s^5 / 5 + ...)
    with s = (m - 1) / (m + 1).
    Computed in float64, also for float32.
    """
    wide, form = x.astype(np.float64), _format(x)
    usual = not x.size or (wide.item(wide.argmin()) >= SMALLEST and wide.item(wide.argmax()) < np.inf)  # False with NaN
    if not usual:
        given, positive = wide, (wide > 0) & (wide < np.inf)
        wide = np.where(positive, wide, 1)
        wide[wide < SMALLEST] *= LARGE
    bits = wide.view(np.int64)
    k = (bits - ROOT_HALF) >> MANTISSA
    m = (bits - (k << MANTISSA)).view(np.float64)
    s = (m - ONE) / (m + ONE)
    series: Array = np.empty_like(s)
    _polynomial(s * s, form.log, series)
    series *= s
    series += k * LN2
    if not usual:
        series[positive & (given < SMALLEST)] -= LOG_LARGE
        series[~positive] = np.where(given == np.inf, given, np.where(given == 0, -np.inf, np.nan))[~positive]
    return series.astype(x.dtype, copy=False)


def tanh(x: Array, out: Array | None = None, workspace: Workspace | None = None) -> Array:
    """The hyperbolic tangent."""
    return _in_pieces(_tanh, x, out, workspace)


def logistic(x: Array, out: Array | None = None, workspace: Workspace | None = None) -> Array:
    """1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2. Where that is smaller than every normal number: the smallest of them."""
    return _in_pieces(_logistic, x, out, workspace)


def _format(x: Array) -> Format:
    """The format of an array; TypeError if there is none."""
    if x.dtype not in FORMATS:
        raise TypeError(f"an array of {x.dtype}, expected float32 or float64")
    return FORMATS[x.dtype]


def _in_pieces(
    function: Callable[[Array, Array, list[Array], Format], None],
    x: Array,
    out: Array | None,
    workspace: Workspace | None,
) -> Array:
    """out = function(x), in pieces that stay in the cache."""
    form = _format(x)
    out = np.empty(x.shape, x.dtype) if out is None else out
    flat = np.ascontiguousarray(x).reshape(-1)
    result = out.reshape(-1) if out.flags.c_contiguous else np.empty_like(flat)
    length = min(PIECE, len(flat))
    if workspace is None:
        scratch = list(np.empty((SCRATCH, length), x.dtype))
    else:
        scratch = list(workspace.array("functions", "scratch", (SCRATCH, PIECE))[:, :length])
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        if len(piece) < length:
            scratch = [one[: len(piece)] for one in scratch]
        function(piece, result[start : start + PIECE], scratch, form)
    if not out.flags.c_contiguous:
        out[...] = result.reshape(out.shape)
    return out


def _reduce(x: Array, rounding: Array, scratch: list[Array], form: Format) -> None:
    """scratch[0] = n + rounding and scratch[1] = r; scratch[2] is overwritten."""
    shifted, r, n = scratch
    np.multiply(x, form.log2_e, out=shifted)
    np.add(shifted, rounding, out=shifted)
    np.subtract(shifted, rounding, out=n)
    np.multiply(n, form.ln2_high, out=r)
    np.subtract(x, r, out=r)
    np.multiply(n, form.ln2_low, out=n)
    np.subtract(r, n, out=r)


def _polynomial(variable: Array, coefficients: list[Array], out: Array) -> None:
    """Horner's rule; the coefficient of the highest power comes first."""
    first, *middle, last = coefficients
    np.multiply(variable, first, out=out)
    for coefficient in middle:
        np.add(out, coefficient, out=out)
        np.multiply(out, variable, out=out)
    np.add(out, last, out=out)


def _exp(x: Array, out: Array, scratch: list[Array], form: Format) -> None:
    normal = -form.normal <= x.item(x.argmin()) and x.item(x.argmax()) <= form.normal  # False with a NaN
    _reduce(x if normal else np.clip(x, *form.all_exp), form.rounding_1, scratch, form)
    shifted, r, squared = scratch
    np.multiply(r, r, out=squared)
    _polynomial(squared, form.w, out)
    np.subtract(out, r, out=out)
    np.divide(r, out, out=out)
    np.add(out, form.half, out=out)
    exponent = shifted.view(form.integer)  # n + 1 in the lowest bits
    if normal:
        bits = out.view(form.integer)
        np.multiply(exponent, form.to_exponent, out=exponent)
        np.add(bits, exponent, out=bits)
        return
    exponent -= (form.rounding_1 - 1).view(form.integer)
    half = exponent >> 1
    with np.errstate(all="ignore"):
        for part in (half, exponent - half):  # two factors, as 2^(n + 1) may be too large or too small
            out *= ((part + form.bias) * form.to_exponent).view(out.dtype)


@np.errstate(all="ignore")  # of NaN
def _tanh(x: Array, out: Array, scratch: list[Array], form: Format) -> None:
    np.clip(x, *form.all_tanh, out=out)
    np.add(out, out, out=out)
    _reduce(out, form.rounding_bias, scratch, form)
    power, v, a = scratch
    np.multiply(v, v, out=a)
    _polynomial(a, form.w, out)
    np.divide(v, out, out=v)
    _to_power(power, form)
    np.subtract(power, form.one, out=a)
    np.add(power, form.one, out=power)
    np.divide(a, power, out=a)
    np.add(a, v, out=out)
    np.multiply(a, v, out=v)
    np.add(v, form.one, out=v)
    np.divide(out, v, out=out)


@np.errstate(all="ignore")  # of NaN
def _logistic(x: Array, out: Array, scratch: list[Array], form: Format) -> None:
    np.clip(x, *form.all_normal, out=out)
    _reduce(out, form.rounding_bias, scratch, form)
    power, r, e = scratch
    np.multiply(r, r, out=e)
    _polynomial(e, form.w, out)
    np.add(out, r, out=e)
    np.subtract(out, r, out=out)
    _to_power(power, form)
    np.multiply(e, power, out=e)
    np.add(out, e, out=out)
    np.divide(e, out, out=out)


def _to_power(shifted: Array, form: Format) -> None:
    """n + rounding_bias to 2^n, in place."""
    bits = shifted.view(form.integer)
    np.multiply(bits, form.to_exponent, out=bits)
