"""Nothing of a job remains on this host: no process, no shared memory, no session folder of mpirun.

Processes and shared memory are found in Linux's /proc; without it nothing is found.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dptrain.errors import DptrainError
from dptrain.system.record import VARIABLE

from .output import report

PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("mpich_shm_*", "sm_segment*")  # MPICH's, Open MPI's
KILL_SECONDS = 5.0  # for processes to end after SIGKILL
MPIRUN_SECONDS = 10.0  # for mpirun to end after its ranks; it usually takes 0.5
RANK_VARIABLE = re.compile(rb"(^|\0)(OMPI_COMM_WORLD|PMI)_RANK=")  # what mpirun gives to ranks only

SESSION_BASE = "PRTE_MCA_prte_tmpdir_base"  # where mpirun and its daemons on other hosts make their session folders
LOCAL_BASE, REMOTE_BASE = "PRTE_MCA_prte_local_tmpdir_base", "PRTE_MCA_prte_remote_tmpdir_base"


class JobProcesses:
    """The processes of the job with this token on this host, by their numbers.

    They have `dptrain.system.record.VARIABLE` with the token in the environment that they were started with.
    """

    def __init__(self, token: str) -> None:
        self._mark = f"{VARIABLE}={token}@".encode()
        self._next_look, self._last_seen = 0.0, math.inf

    def _environments(self) -> dict[int, bytes]:
        found = {}
        for path in PROC.glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # ended meanwhile, or another user's
                environment = path.read_bytes()
                if self._mark in environment:
                    found[int(path.parent.name)] = environment
        return found

    def all(self) -> list[int]:
        """mpirun, the daemons that it has started, and the ranks."""
        return [*self._environments()]

    def ranks(self) -> list[int]:
        """The ranks, and what they have started."""
        return [process for process, environment in self._environments().items() if RANK_VARIABLE.search(environment)]

    def ranks_are_gone(self) -> bool:
        """Whether there were ranks, but none for some seconds; to be called repeatedly.

        Open MPI's mpirun sometimes does not end after several ranks of an elastic job have died at the same time.
        """
        now = time.monotonic()
        if now >= self._next_look:  # once a second, as /proc may be large
            self._next_look = now + 1
            if self.ranks():
                self._last_seen = now
        return now - self._last_seen > MPIRUN_SECONDS

    def end(self) -> None:
        """Send SIGKILL, which also ends stopped processes, to all of them until none is left."""
        deadline = time.monotonic() + KILL_SECONDS
        while left := self.all():
            if time.monotonic() > deadline:
                report(f"processes that SIGKILL does not end: {', '.join(map(str, left))}; check disk and network")
                return
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)


@contextmanager
def no_leftovers(token: str) -> Iterator[JobProcesses]:
    """The processes of the job with this token; after the block they and their shared memory are removed."""
    processes, earlier = JobProcesses(token), segments()
    try:
        yield processes
    finally:
        processes.end()
        remove_unmapped(segments() - earlier)


def segments() -> set[Path]:
    """The shared memory of MPI jobs on this host, as files."""
    return {path for pattern in SEGMENTS for path in SHARED_MEMORY.glob(pattern)}


def remove_unmapped(paths: set[Path]) -> None:
    """Remove those files that are ours and mapped by no process: the others belong to jobs that still run."""
    maps = mapped() if paths else ""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.geteuid() and str(path) not in maps:
                path.unlink()


def mapped() -> str:
    """The memory maps of all processes that may be read."""
    read = []
    for path in PROC.glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            read.append(path.read_text(errors="replace"))
    return "".join(read)


@contextmanager
def session_folder(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A new folder for the session of Open MPI's mpirun, within the block; yields the variables for mpirun.

    Open MPI names a session by mpirun's process number, and does not start if a killed job, or one of another
    container, has left a session of the same number. Daemons on other hosts would not remove this folder, so they use
    the user's. DptrainError where no folder can be made.
    """
    base = environment.get(SESSION_BASE)
    try:
        folder = tempfile.TemporaryDirectory(prefix="mpirun-", dir=base, ignore_cleanup_errors=True)
    except OSError as error:
        raise DptrainError(
            f"no folder for mpirun's session: {error}; set TMPDIR to a folder on another disk"
        ) from error
    variables = {name: value for name, value in environment.items() if name != SESSION_BASE}
    if base is not None:
        variables.setdefault(REMOTE_BASE, base)
    with folder as name:
        yield variables | {LOCAL_BASE: name}
