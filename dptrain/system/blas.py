"""One BLAS thread for every shard.

The order of additions in OpenBLAS depends on the number of threads, so the arithmetic contract requires exactly one.
The cores compute several shards at the same time instead. `request_one_thread` must run before NumPy is imported, so
this module does not import it.
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
    cores = {str(pool.get("architecture", "unknown")) for pool in pools}
    return {"blas": ", ".join(sorted(names)) or "unknown", "blas_core": ", ".join(sorted(cores)) or "unknown"}
