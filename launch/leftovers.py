"""What a job leaves behind on this host: processes that outlive mpirun, and shared memory that nobody maps.

Both are found in Linux's /proc; without it nothing is found.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.system.record import VARIABLE

from .screen import say

MARK = VARIABLE
PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("mpich_shm_*", "sm_segment*")  # MPICH's, Open MPI's
GONE_SECONDS = 5.0
RANK_VARIABLE = re.compile(rb"(^|\0)(OMPI_COMM_WORLD|PMI)_RANK=")  # what mpirun gives to ranks only
GONE_FOR_GOOD = 10.0  # seconds that mpirun may need to end after its ranks; usual are 0.5


@contextmanager
def no_leftovers() -> Iterator[dict[str, str]]:
    """Yield the variable that marks a job's processes; when the block ends, so do they and their shared memory."""
    mark = {MARK: secrets.token_hex(16)}
    earlier = segments()
    try:
        yield mark
    finally:
        end_marked(mark[MARK])
        remove_unmapped(segments() - earlier)


def marked(token: str) -> dict[int, bytes]:
    """Process numbers of those that were started with the mark in their environment, which is the value."""
    found = {}
    for path in PROC.glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            environment = path.read_bytes()
            if f"{MARK}={token}\0".encode() in environment:
                found[int(path.parent.name)] = environment
    return found


class JobProcesses:
    """The processes of the job with this mark on this host, by their numbers."""

    def __init__(self, token: str) -> None:
        self._token = token

    def all(self) -> list[int]:
        """mpirun, the daemons that it has started, and the ranks."""
        return [*marked(self._token)]

    def ranks(self) -> list[int]:
        """The ranks, and what they have started."""
        return [process for process, environment in marked(self._token).items() if RANK_VARIABLE.search(environment)]


class RanksGone:
    """Called again and again: whether the ranks of a job were there and have been gone for some time.

    Open MPI's mpirun has been seen to stay when several ranks of an elastic job had died at about the same time.
    """

    def __init__(self, processes: JobProcesses) -> None:
        self._processes = processes
        self._seen = False
        self._looked = self._last_there = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= 1:
            self._looked = now
            if self._processes.ranks():
                self._seen, self._last_there = True, now
        return self._seen and now - self._last_there > GONE_FOR_GOOD


def end_marked(token: str) -> None:
    """SIGKILL, which also ends stopped processes, to all that carry the mark, until none is left."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := marked(token):
        if time.monotonic() > deadline:
            say(f"processes {', '.join(map(str, left))} of the job do not end, even by SIGKILL; check disk and network")
            return
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def segments() -> set[Path]:
    """The shared memory of MPI jobs on this host, as files."""
    return {path for pattern in SEGMENTS for path in SHARED_MEMORY.glob(pattern)}


def remove_unmapped(paths: set[Path]) -> None:
    """Remove those files that are ours and mapped by no process: the others belong to jobs that still run."""
    if not paths:
        return
    maps = mapped()
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.geteuid() and str(path) not in maps:
                path.unlink()


def mapped() -> str:
    """The memory maps of all processes that may be read, ours among them."""
    read = []
    for path in PROC.glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            read.append(path.read_text(errors="replace"))
    return "".join(read)
