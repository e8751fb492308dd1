"""One BLAS thread for every shard, and the kernels of --portable.

The order of additions in OpenBLAS depends on the number of threads, so the arithmetic contract requires exactly one.
The cores compute several shards at the same time instead. The order also depends on the kernels, which OpenBLAS chooses
by the CPU; its Haswell kernels run on every CPU with AVX2 and FMA. The functions named `request` must run before NumPy
is imported, so this module does not import it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from dptrain.errors import DptrainError, UsageError

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
)
KERNEL_VARIABLE = "OPENBLAS_CORETYPE"
PORTABLE_KERNELS = "Haswell"
INSTRUCTIONS = ("avx2", "fma")  # that these kernels need, as in /proc/cpuinfo


def request_one_thread() -> None:
    """Set the environment variables that limit every BLAS to one thread, also if the user has set them."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))


def ensure_one_thread() -> dict[str, str]:
    """Limit every loaded BLAS to one thread; DptrainError if it ignores the limit.

    Returns a description: "blas" (library and version) and "blas_core" (the kernels it chose).
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    for pool in pools:
        if pool["num_threads"] != 1:
            variables = " ".join(f"{name}=1" for name in THREAD_VARIABLES)
            raise DptrainError(
                f"{pool['filepath']} runs {pool['num_threads']} threads and ignores the limit of 1, which reproducible "
                f"results need; set {variables} before starting"
            )
    names = {f"{pool['internal_api']} {pool['version']}" for pool in pools}
    return {"blas": ", ".join(sorted(names)) or "unknown", "blas_core": ", ".join(sorted(kernels())) or "unknown"}


def kernels() -> set[str]:
    """OpenBLAS's names of the kernels that it has chosen for this CPU, such as "Haswell"."""
    import threadpoolctl

    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {str(pool.get("architecture", "unknown")) for pool in pools}


def request_portable_kernels() -> None:
    """Make OpenBLAS use its Haswell kernels; UsageError on a CPU that cannot run them."""
    missing = missing_instructions()
    if missing:
        raise UsageError(
            f"--portable needs an x86-64 CPU with AVX2 and FMA, but the CPU of {platform.node()} has no "
            f"{' and no '.join(missing)}: leave --portable out"
        )
    os.environ[KERNEL_VARIABLE] = PORTABLE_KERNELS


def missing_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Which of the INSTRUCTIONS this CPU does not have. All of them if it is no x86-64 CPU."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return [] if platform.machine() == "x86_64" else [*INSTRUCTIONS]
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return [name for name in INSTRUCTIONS if name not in flags]


def ensure_portable_kernels(found: Mapping[str, str]) -> None:
    """DptrainError unless `found`, the result of `ensure_one_thread`, shows OpenBLAS with its Haswell kernels alone."""
    libraries = {name.split()[0] for name in found["blas"].split(", ")}
    if libraries != {"openblas"}:
        raise DptrainError(
            f"--portable needs NumPy with OpenBLAS, found {found['blas']}: install NumPy from PyPI, with pip"
        )
    if found["blas_core"] != PORTABLE_KERNELS:
        raise DptrainError(
            f"--portable needs OpenBLAS's {PORTABLE_KERNELS} kernels, found {found['blas_core']}: set "
            f"{KERNEL_VARIABLE}={PORTABLE_KERNELS} before NumPy is imported, and use an OpenBLAS with DYNAMIC_ARCH"
        )
