"""Limits of CPU time, memory and processes: the machine's, and those that a container or batch system sets by cgroups.

A process is in one group of each hierarchy; the limits of the groups above hold too. Version 2 has one hierarchy
(cpu.max, memory.max), version 1 one for each controller (cpu.cfs_quota_us, memory.limit_in_bytes). Both have pids.max.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from dptrain.errors import LimitError

ROOT = Path("/")  # tests use another folder


def cpu_limits(root: Path = ROOT) -> dict[str, float]:
    """The CPU quota in cores of each group of this process that has one, by the group's folder."""
    found = {}
    for folder in _groups("cpu", root):
        version_1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        words = (_read(folder / "cpu.max") or version_1).split()
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]) > 0:  # not max, not -1
            found[str(folder)] = int(words[0]) / int(words[1])
    return found


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes of memory and swap that this process may use: the least of the machine's and those of its groups."""
    limits = []
    for folder in _groups("memory", root):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        limits += [int(word) for word in text.split() if word.isdecimal()]
    words = _read(root / "proc/meminfo").split()
    machine = dict(pairwise(words))
    if "MemTotal:" in machine:
        limits.append(1024 * (int(machine["MemTotal:"]) + int(machine.get("SwapTotal:", 0))))
    return min(limits, default=None)


def process_room(root: Path = ROOT) -> int | None:
    """How many processes and threads may still be started in the groups of this process; None without a limit."""
    counts = [(_read(folder / "pids.max"), _read(folder / "pids.current")) for folder in _groups("pids", root)]
    numbers = [(most.strip(), now.strip()) for most, now in counts]
    return min((int(most) - int(now) for most, now in numbers if most.isdecimal() and now.isdecimal()), default=None)


def check_memory(size: int, what: str) -> None:
    """LimitError if `size` bytes for `what` are more than `memory_limit`.

    The system would grant the memory, and kill a process when it is used.
    """
    limit = memory_limit()
    if limit is not None and size > limit:
        raise LimitError(
            f"{what} need at least {size / (1 << 30):,.1f} GiB of memory, found {limit / (1 << 30):,.1f} GiB; use a "
            "smaller network (--model-options), or ranks on more machines"
        )


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the process's groups and of their parents. Those of the host do not exist within a container."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            group = Path(path.lstrip("/"))
            yield from (top / part for part in (group, *group.parents))


def _read(path: Path) -> str:
    """The text of a file, "" if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
