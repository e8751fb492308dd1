"""The portable exp, log, tanh and logistic: errors, special values, and the same bits without NumPy's SIMD."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples, quick_first

from dptrain.arrays import functions
from dptrain.arrays.memory import Array, Workspace

WIDE = {np.float32: np.float64, np.float64: np.longdouble}  # NumPy's own functions of these are the reference


def wide_logistic(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


REFERENCES: dict[str, tuple[Callable[[Array], Array], float]] = {  # with the largest error, in units in the last place
    "exp": (np.exp, 1.5),
    "log": (np.log, 3.0),
    "tanh": (np.tanh, 3.0),
    "logistic": (wide_logistic, 2.5),
}
# All bits of exp, log, tanh and logistic of SAMPLES: the same on every machine.
SHA256 = "396fc8a418e97c1085cdb7419ebff30d932d652af0e84457989559eb4431fc3e"
EVERY = 4001  # of 2^32 bit patterns; odd, so that all low bits occur


def samples() -> Array:
    """float32 numbers of every sign, exponent and kind."""
    x = np.arange(0, 1 << 32, EVERY, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), x)


def results_sha256() -> str:
    """The hash of all results. IEEE 754 does not define the sign of a NaN: it is left out."""
    hashed = hashlib.sha256()
    for name in REFERENCES:
        results = getattr(functions, name)(samples())
        hashed.update(np.where(np.isnan(results), np.float32(np.nan), results).tobytes())
    return hashed.hexdigest()


@quick_first("real", WIDE)
@pytest.mark.parametrize("name", REFERENCES)
def test_errors_are_a_few_units_in_the_last_place(name: str, real: Any) -> None:
    reference, largest = REFERENCES[name]
    border = 110 if real is np.float32 else 750
    x = np.concatenate([samples(), np.linspace(-12, 12, 200_001), np.linspace(-border, border, 200_001)]).astype(real)
    with np.errstate(all="ignore"):
        exact = reference(x.astype(WIDE[real]))
        expected = exact.astype(real)
    found = getattr(functions, name)(x)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    if name == "logistic":  # not below the smallest normal number
        finite &= exact > 2 * np.finfo(real).smallest_normal
    units = np.abs(found[finite] - exact[finite]) / np.spacing(np.abs(expected[finite]))
    assert units.max() <= largest


@pytest.mark.parametrize("real", WIDE)
def test_special_values(real: Any) -> None:
    x = np.array([np.nan, -np.inf, -1e30, -1, 0, 1e30, np.inf], real)
    np.testing.assert_array_equal(functions.exp(x)[[0, 1, 2, 4, 5, 6]], [np.nan, 0, 0, 1, np.inf, np.inf])
    np.testing.assert_array_equal(
        functions.log(x)[[0, 1, 2, 3, 4, 6]], [np.nan, np.nan, np.nan, np.nan, -np.inf, np.inf]
    )
    np.testing.assert_array_equal(functions.tanh(x)[[0, 1, 2, 4, 5, 6]], [np.nan, -1, -1, 0, 1, 1])
    smallest = np.finfo(real).smallest_normal
    found = functions.logistic(x)
    np.testing.assert_array_equal(found[[0, 4, 5, 6]], [np.nan, 0.5, 1, 1])
    assert (found[[1, 2]] >= smallest).all()
    assert (found[[1, 2]] < 2 * smallest).all()


@pytest.mark.parametrize("name", REFERENCES)
@examples(10)
@given(st.integers(0, 2 * functions.PIECE + 3), st.booleans())
def test_an_element_does_not_depend_on_the_others(name: str, count: int, special: bool) -> None:
    """In pieces of any length, beside values out of range, in place, in a workspace and in a transposed array."""
    function = getattr(functions, name)
    x = np.linspace(0.5, 80, 5 * functions.PIECE, dtype=np.float32)
    expected = function(x)[:count]
    x = x[:count].copy()
    if special and count:
        x[0], expected[0] = np.nan, np.nan
    workspace = Workspace()
    np.testing.assert_array_equal(function(x), expected)
    if name == "log":
        return
    np.testing.assert_array_equal(function(x, workspace=workspace), expected)
    columns = np.stack([x, x]).T
    found = function(columns, out=np.empty((2, count), np.float32).T)
    np.testing.assert_array_equal(found, np.stack([expected, expected], axis=1))
    assert function(x, x, workspace) is x
    np.testing.assert_array_equal(x, expected)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="an array of int64, expected float32 or float64"):
        functions.exp(np.arange(3))


def test_the_bits_are_those_of_every_other_machine() -> None:
    assert results_sha256() == SHA256


@quick_first("features", ["X86_V4 AVX512_ICL", "X86_V3 X86_V4 AVX2 FMA3 AVX512F"])
def test_the_bits_do_not_depend_on_the_cpu_features_that_numpy_uses(features: str) -> None:
    """NumPy ignores, with a warning, features that it or the CPU does not have."""
    code = "import test_functions; print(test_functions.results_sha256())"
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SHA256
