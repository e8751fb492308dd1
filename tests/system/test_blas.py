"""dptrain.system.blas: one BLAS thread, for any setting of the shell, and also if NumPy was imported before.

And the kernels of --portable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import threadpoolctl

from dptrain.errors import DptrainError, UsageError
from dptrain.system import blas
from dptrain.system.blas import THREAD_VARIABLES, ensure_one_thread, request_one_thread

REPORT = """
import gc, json
gc.collect()  # a limit must not end with the object that set it
numpy.ones((300, 300)) @ numpy.ones((300, 300))
print(json.dumps([p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]))
"""
TWO_THREADS = dict.fromkeys(THREAD_VARIABLES, "2")


def threads_after(program: str) -> Any:
    """Threads of each BLAS in a new process whose shell asked for two, after these lines."""
    done = subprocess.run(
        [sys.executable, "-c", program + REPORT],
        env={**os.environ, **TWO_THREADS},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_a_limit_blas_uses_the_threads_that_the_shell_sets() -> None:
    """Otherwise the tests below could not fail."""
    assert threads_after("import numpy, threadpoolctl") == [2]


def test_blas_loaded_after_the_request_has_one_thread() -> None:
    program = "from dptrain.system.blas import request_one_thread; request_one_thread(); import numpy, threadpoolctl"
    assert threads_after(program) == [1]


def test_blas_loaded_earlier_is_limited_to_one_thread() -> None:
    program = "import numpy, threadpoolctl; from dptrain.system.blas import ensure_one_thread; ensure_one_thread()"
    assert threads_after(program) == [1]


@pytest.mark.parametrize("module", ["dptrain.system.blas", "dptrain.commands.main"])
def test_numpy_is_not_imported_before_blas_is_limited(module: str) -> None:
    program = f"import sys, {module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_the_limit_applies_to_every_blas_and_to_processes_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "2")
    request_one_thread()
    assert {variable: os.environ[variable] for variable in THREAD_VARIABLES} == dict.fromkeys(THREAD_VARIABLES, "1")


def test_the_blas_library_and_its_kernels_are_reported() -> None:
    found = ensure_one_thread()
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    assert set(found) == {"blas", "blas_core"}
    for pool in pools:
        assert pool["internal_api"] in found["blas"]
        assert pool["version"] in found["blas"]
        assert pool["architecture"] in found["blas_core"]


def test_a_blas_that_ignores_the_limit_is_an_error_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: dict[str, Any] = {"user_api": "blas", "internal_api": "stubborn", "version": "1"}
    openmp = {"user_api": "openmp", "internal_api": "openmp", "version": None, "filepath": "libgomp.so"}
    info = [{**openmp, "num_threads": 8}, {**pool, "filepath": "libstubborn.so", "num_threads": 4}]
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: info)
    with pytest.raises(DptrainError, match=r"libstubborn\.so runs 4 threads.*OPENBLAS_NUM_THREADS=1"):
        ensure_one_thread()
    info[1]["num_threads"] = 1
    assert ensure_one_thread() == {"blas": "stubborn 1", "blas_core": "unknown"}


@pytest.mark.parametrize(
    ("cpuinfo", "missing"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 fma avx2 avx512f\n", []),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx\n", ["avx2", "fma"]),
        ("processor\t: 0\nflags\t\t: fpu fma4 avx2\n", ["fma"]),
        ("processor\t: 0\nFeatures\t: fp asimd\n", ["avx2", "fma"]),
    ],
    ids=["AVX-512", "Sandy Bridge", "without FMA3", "ARM"],
)
def test_a_cpu_without_the_instructions_is_recognised(cpuinfo: str, missing: list[str], tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert blas.missing_instructions(path) == missing


def test_portable_kernels_are_refused_on_a_cpu_that_cannot_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "missing_instructions", lambda: ["avx2", "fma"])
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    with pytest.raises(
        UsageError, match=r"--portable needs an x86-64 CPU with AVX2 and FMA, but .* no avx2 and no fma"
    ):
        blas.request_portable_kernels()
    assert os.environ["OPENBLAS_CORETYPE"] == "Nehalem"


@pytest.mark.parametrize(
    ("library", "kernels", "message"),
    [
        ("openblas 0.3.31", "Haswell", ""),
        ("openblas 0.3.27, openblas 0.3.31", "Haswell", ""),
        ("openblas 0.3.31", "SkylakeX", "found SkylakeX: set OPENBLAS_CORETYPE=Haswell before NumPy is imported"),
        ("mkl 2025.1", "unknown", "needs NumPy with OpenBLAS, found mkl 2025.1: install NumPy from PyPI"),
        ("unknown", "unknown", "needs NumPy with OpenBLAS, found unknown: install NumPy from PyPI"),
    ],
)
def test_portable_runs_need_the_right_kernels(library: str, kernels: str, message: str) -> None:
    found = {"blas": library, "blas_core": kernels}
    if not message:
        blas.ensure_portable_kernels(found)
        return
    with pytest.raises(DptrainError, match=message):
        blas.ensure_portable_kernels(found)
