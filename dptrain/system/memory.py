"""The memory that a process and its forked workers use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def used_memory() -> int | None:
    """Bytes of this process and its children; a page that k processes share counts 1/k in each. None if unknown.

    This is Linux's "proportional set size".
    """
    total = 0
    for process in ("self", *_children()):
        with contextlib.suppress(OSError):  # it has ended, or the system hides it
            for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return total or None


def _children() -> list[str]:
    """The process identifiers of this process's children."""
    found: list[str] = []
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += tasks.read_text(encoding="ascii").split()
    return [process for process in found if process != str(os.getpid())]
