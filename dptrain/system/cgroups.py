"""Limits of CPU time and memory that a container or a batch system sets through control groups (cgroups, Linux).

A process is in one group of each hierarchy, and the limits of all groups above it hold too. Version 2 has one hierarchy
(cpu.max, memory.max), version 1 one for each controller (cpu.cfs_quota_us, memory.limit_in_bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

ROOT = Path("/")  # tests use another folder


def cpu_limits(root: Path = ROOT) -> dict[str, Fraction]:
    """The CPU quota in cores of each group of this process that has one, by the group's folder."""
    found = {}
    for folder in _groups("cpu", root):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]) > 0:  # not max, not -1
            found[str(folder)] = Fraction(int(words[0]), int(words[1]))
    return found


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes of memory and swap that this process may use: the least of the machine's and those of its groups."""
    limits = []
    for folder in _groups("memory", root):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        limits += [int(word) for word in words if word.isdecimal()]
    machine = dict(line.split()[:2] for line in _lines(root / "proc/meminfo"))
    if "MemTotal:" in machine:
        limits.append(1024 * (int(machine["MemTotal:"]) + int(machine.get("SwapTotal:", 0))))
    return min(limits, default=None)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups that may limit this process: the process's group first, then its parents."""
    paths = {}  # of this process's group, by controller; "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(), "", "", ""][:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            top, mounted_at = before.split()[3:5]  # the mounted group: in a container often not the root group
            path = paths.get("" if kind == "cgroup2" else controller, top)
            below = Path(path).relative_to(top) if Path(path).is_relative_to(top) else Path()
            mount = root / mounted_at.lstrip("/")
            yield from (mount / part for part in (below, *below.parents))


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    """The lines of a file; none where it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
