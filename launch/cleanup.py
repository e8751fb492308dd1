"""No process, shared memory (both found in Linux's /proc) or session folder of a job remains on this host."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dptrain.system.record import VARIABLE

from .output import report

SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("mpich_shm_*", "sm_segment*")  # MPICH's, Open MPI's
KILL_SECONDS = 5.0  # for processes to end after SIGKILL
LOOKS = 10  # at an empty environment, in 0.1 s; that of a process that executes a program is empty for 0.0002 s
MPIRUN_SECONDS = 10.0  # for mpirun to end after its ranks; it usually takes 0.5
RANK_VARIABLE = re.compile(rb"(^|\0)(OMPI_COMM_WORLD|PMI)_RANK=")  # what mpirun gives to ranks only

SESSION_BASE = "PRTE_MCA_prte_tmpdir_base"  # where mpirun and its daemons on other hosts make their session folders
LOCAL_BASE, REMOTE_BASE = "PRTE_MCA_prte_local_tmpdir_base", "PRTE_MCA_prte_remote_tmpdir_base"


class JobProcesses:
    """The processes of a job on this host, by their numbers: those with its token in their initial environment."""

    def __init__(self, token: str) -> None:
        self._mark = f"{VARIABLE}={token}@".encode()
        self._next_look, self._last_seen = 0.0, math.inf

    def find(self, *, only_ranks: bool = False) -> list[int]:
        """mpirun, the daemons that it has started, and the ranks with what they have started."""
        return [
            process
            for process, environment in environments()
            if self._mark in environment and (not only_ranks or RANK_VARIABLE.search(environment))
        ]

    def ranks_are_gone(self) -> bool:
        """Whether there were ranks, but none for some seconds: mpirun may not end after several elastic ranks died."""
        now = time.monotonic()
        if now >= self._next_look:  # once a second, as /proc may be large
            self._next_look = now + 1
            if self.find(only_ranks=True):
                self._last_seen = now
        return now - self._last_seen > MPIRUN_SECONDS

    def end(self) -> None:
        """Kill all of them, until none is left."""
        deadline = time.monotonic() + KILL_SECONDS
        while left := self.find():
            if time.monotonic() > deadline:
                report(f"processes that SIGKILL does not end: {', '.join(map(str, left))}; check disk and network")
                return
            send(left, signal.SIGKILL)
            time.sleep(0.02)


def environments() -> Iterator[tuple[int, bytes]]:
    """Number and initial environment of each process that may be read and has one.

    The kernel shows an empty environment for a moment while a process executes a program, so these are read again.
    """
    left = list(Path("/proc").glob("[0-9]*"))
    for _ in range(LOOKS):
        empty = []
        for path in left:
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                if environment := (path / "environ").read_bytes():
                    yield int(path.name), environment
                elif (path / "exe").readlink():  # fails for zombies and the kernel's threads
                    empty.append(path)
        if not empty:
            return
        left = empty
        time.sleep(0.01)


def send(processes: Iterable[int], number: int) -> None:
    """Send a signal to those of the processes that still exist."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@contextmanager
def no_leftovers(token: str) -> Iterator[JobProcesses]:
    """The processes of the job with this token; after the block they and their shared memory are removed."""
    processes, earlier = JobProcesses(token), segments()
    try:
        yield processes
    finally:
        processes.end()
        left = segments() - earlier
        maps = mapped() if left else ""
        for path in left:
            with contextlib.suppress(OSError):  # those that are mapped belong to jobs that still run
                if path.stat().st_uid == os.geteuid() and str(path) not in maps:
                    path.unlink()


def segments() -> set[Path]:
    """The shared memory of MPI jobs on this host, as files."""
    return {path for pattern in SEGMENTS for path in SHARED_MEMORY.glob(pattern)}


def mapped() -> str:
    """The memory maps of all processes that may be read."""
    read = []
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            read.append(path.read_text(errors="replace"))
    return "".join(read)


@contextmanager
def session_folder(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The variables for mpirun, with a folder for Open MPI's session that exists within the block.

    A session is named by mpirun's process number, and mpirun does not start if a killed job, or one of another
    container, has left a session of this name. Daemons on other hosts would not remove this folder, and do not use it.
    """
    base = environment.get(SESSION_BASE)
    variables = {REMOTE_BASE: base, **environment} if base else {**environment}
    variables.pop(SESSION_BASE, None)
    with tempfile.TemporaryDirectory(prefix="mpirun-", dir=base, ignore_cleanup_errors=True) as name:
        yield variables | {LOCAL_BASE: name}
