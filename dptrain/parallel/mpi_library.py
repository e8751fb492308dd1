"""Loading the MPI library. The only file that imports mpi4py; it does not import NumPy, which may be broken."""

from __future__ import annotations

from typing import Any


def load_library() -> Any:
    """The module mpi4py.MPI. Its MPI library is loaded but not started; ImportError or RuntimeError if it cannot be."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    return MPI


def library_name(mpi: Any) -> str:
    """Name and version of the MPI library, such as "Open MPI v5.0.11"."""
    return " ".join(mpi.Get_library_version().split("\n")[0].split(",")[0].strip(" \x00").split())


def mpi4py_version() -> str:
    """The version of mpi4py; ImportError without it."""
    import mpi4py

    version: str = mpi4py.__version__
    return version
