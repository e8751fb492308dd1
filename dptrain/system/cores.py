"""Binds a rank to its share of the host's cores, if the launcher requests it.

Each rank binds itself. This works with every MPI, and in a container or batch job that has only some of the cores:
mpirun numbers the cores of the whole machine, and cannot bind there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "DPTRAIN_BIND"  # "cores": bind this rank
LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")  # Open MPI, MPICH: this rank among those of its host
LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")  # and their number
YIELD = "OMPI_MCA_mpi_yield_when_idle"
SYSFS_CPUS = Path("/sys/devices/system/cpu")


def bind_to_cores() -> None:
    """Bind this rank to its share of the physical cores of its host, if the launcher has requested it.

    Call it before the process starts threads. It binds neither a single rank, nor more ranks than cores (these yield
    while they wait), nor where the system forbids it.
    """
    rank, ranks = _number(LOCAL_RANK), _number(LOCAL_RANKS)
    if rank is None or ranks is None:
        return
    if os.environ.pop(VARIABLE, "") != "cores" or ranks <= 1:  # removed: child processes are not ranks
        return
    cores = physical_cores(os.sched_getaffinity(0))
    each = len(cores) // ranks
    if each == 0:
        os.environ.setdefault(YIELD, "1")
        return
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, set().union(*cores[rank * each : (rank + 1) * each]))


def physical_cores(cpus: Iterable[int]) -> list[set[int]]:
    """The logical CPUs among `cpus` of each physical core, package by package; without Linux's files, one CPU each."""
    cores: dict[tuple[int, str], set[int]] = {}
    for cpu in sorted(cpus):
        folder = SYSFS_CPUS / f"cpu{cpu}" / "topology"
        try:
            package = int((folder / "physical_package_id").read_text())
            siblings = (folder / "thread_siblings_list").read_text()
        except OSError:
            package, siblings = 0, str(cpu)
        cores.setdefault((package, siblings), set()).add(cpu)
    return [cores[key] for key in sorted(cores, key=lambda key: (key[0], min(cores[key])))]


def _number(names: Iterable[str]) -> int | None:
    """The number in the first of these environment variables that has one."""
    for name in names:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return None
