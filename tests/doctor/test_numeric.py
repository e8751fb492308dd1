"""dptrain.doctor.numeric: NumPy, its BLAS and the fixed computation."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.doctor import numeric
from dptrain.doctor.finding import FAILURE, OK, WARNING
from dptrain.doctor.numeric import check_blas, check_computation, check_numpy


def test_an_old_numpy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_numpy().found.startswith(np.__version__)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    found = check_numpy()
    assert found.result == FAILURE
    assert "1.26.4" in found.found
    assert "NumPy 2.0 or later" in found.remedy


def test_the_blas_is_described_with_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numeric, "ensure_one_thread", lambda: {"blas": "openblas 1", "blas_core": "Zen"})
    monkeypatch.setattr(numeric, "missing_instructions", list)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "ZEN")
    found = check_blas()
    assert (found.result, found.found) == (OK, "openblas 1, Zen kernels, one thread a shard (OPENBLAS_CORETYPE=ZEN)")
    monkeypatch.setattr(numeric, "missing_instructions", lambda: ["avx2", "fma"])
    found = check_blas()
    assert found.result == WARNING
    assert found.found.endswith("; the CPU has no avx2 and no fma")
    monkeypatch.setattr(numeric, "ensure_one_thread", lambda: {"blas": "unknown", "blas_core": "unknown"})
    assert "OpenBLAS" in check_blas().remedy


def test_a_computation_that_gives_two_results_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter(["a" * 64, "a" * 64, "a" * 64, "b" * 64])
    monkeypatch.setattr(numeric, "fixed_training", lambda: next(results))
    found = check_computation()
    assert (found.result, found.facts["sha256"]) == (OK, "a" * 64)
    assert found.facts["environment"]["numpy"] == np.__version__
    found = check_computation()
    assert found.result == FAILURE
    assert "memory" in found.remedy


def test_the_smallest_change_of_the_arithmetic_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numeric, "NETWORKS", ({"model": "linear", "lr": 0.05},))
    first = numeric.fixed_training()
    assert numeric.fixed_training() == first
    monkeypatch.setattr(numeric, "NETWORKS", ({"model": "linear", "lr": float(np.nextafter(np.float32(0.05), 1))},))
    assert numeric.fixed_training() != first
