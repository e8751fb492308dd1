"""The cores of this host and how the ranks of a job share them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SYSFS_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Host:
    """`packages`: physical cores this process may use, per processor package (socket).

    `bindable` is False where binding would fail or put ranks on cores that are not ours: mpirun numbers the
    cores of the whole machine, so a process confined to some of them (taskset, a container's cpuset) must
    leave its ranks unbound, as they inherit the confinement.
    """

    packages: tuple[int, ...]
    bindable: bool

    @property
    def cores(self) -> int:
        """Physical cores this process may use; hardware threads of one core count once."""
        return sum(self.packages)


def this_host() -> Host:
    """The host as this process may use it."""
    if not hasattr(os, "sched_getaffinity"):
        return Host((os.cpu_count() or 1,), bindable=False)
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)  # changes nothing; some containers forbid even that
        permitted = True
    except OSError:
        permitted = False
    return Host(packages_of(cpus, SYSFS_CPUS), bindable=permitted and len(cpus) == os.cpu_count())


def packages_of(cpus: set[int], sysfs: Path) -> tuple[int, ...]:
    """Physical cores in each package that the logical `cpus` belong to; one package when Linux does not tell."""
    try:
        topology = [sysfs / f"cpu{cpu}" / "topology" for cpu in sorted(cpus)]
        cores = {
            ((folder / "physical_package_id").read_text(), (folder / "thread_siblings_list").read_text())
            for folder in topology
        }
    except OSError:
        return (len(cpus),)
    return tuple(Counter(package for package, _ in sorted(cores)).values())


def cores_per_rank(ranks: int, host: Host) -> int | None:
    """How many cores of its own each rank is bound to, or None when ranks are better left unbound.

    A lone rank needs no binding, more ranks than cores have no cores of their own, and mpirun aborts a job
    where a rank's cores would lie in two packages.
    """
    cores = host.cores // ranks
    if not host.bindable or ranks == 1 or cores == 0:
        return None
    fitting = sum(package // cores for package in host.packages)
    return cores if fitting >= ranks else None
