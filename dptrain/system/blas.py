"""One BLAS thread for every shard.

OpenBLAS adds up in another order with two threads than with one, so the arithmetic contract needs exactly
one; the cores are used by running shards side by side. `request_one_thread` must run before NumPy is
imported, so this module does not import it.
"""

from __future__ import annotations

import os

from dptrain.errors import DptrainError

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
)


def request_one_thread() -> None:
    """Ask every BLAS for one thread through its environment variable, whatever the user's shell says."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"


def ensure_one_thread() -> dict[str, str]:
    """Hold every loaded BLAS to one thread, check that it obeys, and return what it is.

    The result has keys "blas" (library and version) and "blas_core" (the kernels it chose).
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    for pool in pools:
        if pool["num_threads"] != 1:
            raise DptrainError(
                f"{pool['filepath']} runs {pool['num_threads']} threads and does not take the limit of 1 that equal "
                f"bits need; set {' '.join(f'{variable}=1' for variable in THREAD_VARIABLES)} before starting"
            )
    names = sorted({f"{pool['internal_api']} {pool['version']}" for pool in pools})
    cores = sorted({str(pool.get("architecture", "unknown")) for pool in pools})
    return {"blas": ", ".join(names) or "unknown", "blas_core": ", ".join(cores) or "unknown"}
