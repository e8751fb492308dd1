"""The machine: cores, memory, clock."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from dptrain.doctor.finding import Check, Finding, ok, warning
from dptrain.system.cache import second_level_cache
from dptrain.system.cgroups import ROOT, cpu_limits, memory_limit
from dptrain.system.cores import physical_cores

LEAST_MEMORY = 1 << 30  # bytes that are available: Python, its libraries and a small network need a quarter of it
DAY = 86_400  # seconds


def checks() -> list[Check]:
    return [
        Check("cores", check_cores, "set --threads yourself"),
        Check("memory", check_memory, "see how much memory is free: free -h"),
        Check("clock", check_clock, "set the clock of this machine"),
    ]


def check_cores(root: Path = ROOT) -> Finding:
    """The cores that this process may use: by affinity, and by the CPU quotas of control groups below `root`."""
    usable, all_cores, quotas = os.sched_getaffinity(0), os.cpu_count() or 1, cpu_limits(root)
    physical, quota = len(physical_cores(usable)), min(quotas.values(), default=None)
    facts = {"usable": len(usable), "physical": physical, "logical": all_cores, "quota": quota}
    text = f"{len(usable)} of {all_cores} logical CPUs may be used"
    text += f", {physical} physical cores" if physical < len(usable) else ""
    text += f"; second-level cache {second_level_cache():,} KiB"
    if quota is None or quota >= len(usable):
        return ok(text, **facts)
    text += f"; the control group's quota is {quota:g} cores"
    if quota < 1:
        remedy = "give the container or job at least one whole core (docker run --cpus, Slurm's --cpus-per-task)"
        return warning(text, remedy, **facts)
    remedy = f"start at most {int(quota)} ranks or threads; more would be stopped for a part of each 0.1 s"
    return ok(text, **facts) if quota == int(quota) else warning(text, remedy, **facts)


def check_memory(root: Path = ROOT) -> Finding:
    """Memory that this process may use, and what is available now."""
    limit, available = memory_limit(root), _available(root)
    if limit is None:
        return warning("the size of the memory is not known: /proc/meminfo cannot be read", "mount /proc")
    facts = {"limit": limit, "available": available}
    least = min(limit, limit if available is None else available)
    if least < LEAST_MEMORY:
        remedy = "end other programs, raise the limit of the container or job, or train a small network on few ranks"
        return warning(f"{least / (1 << 30):.1f} GiB available, expected at least 1 GiB", remedy, **facts)
    return ok(f"{limit / (1 << 30):.0f} GiB", **facts)


def _available(root: Path) -> int | None:
    """Bytes of the machine that are free, or can be freed; a control group may have fewer."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def check_clock(now: float | None = None) -> Finding:
    """The clock must be later than the time at which dptrain was installed."""
    now = time.time() if now is None else now
    shown, installed = _day(now), Path(__file__).stat().st_mtime
    if now < installed - DAY:
        remedy = "set it, for example: timedatectl set-ntp true; times of files, logs and certificates depend on it"
        return warning(f"{shown}, but dptrain was installed on {_day(installed)}", remedy, seconds=now)
    return ok(f"{shown} (UTC)", seconds=now)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
