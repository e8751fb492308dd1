"""Nothing of a job remains on this host: no process, no shared memory, no session folder of mpirun.

Processes and shared memory are found in Linux's /proc; without it nothing is found.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dptrain.errors import DptrainError
from dptrain.system.record import VARIABLE

from .output import say

PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")
SEGMENTS = ("mpich_shm_*", "sm_segment*")  # MPICH's, Open MPI's
GONE_SECONDS = 5.0
RANK_VARIABLE = re.compile(rb"(^|\0)(OMPI_COMM_WORLD|PMI)_RANK=")  # what mpirun gives to ranks only
GONE_FOR_GOOD = 10.0  # seconds that mpirun may need to end after its ranks; usual are 0.5

SESSION_BASE = "PRTE_MCA_prte_tmpdir_base"  # where mpirun and its daemons on other hosts make their session folders
LOCAL_BASE, REMOTE_BASE = "PRTE_MCA_prte_local_tmpdir_base", "PRTE_MCA_prte_remote_tmpdir_base"
PREFIX = "mpirun-"
LOCK = "dptrain-launch.lock"  # locked as long as the launcher or its mpirun lives


class JobProcesses:
    """The processes of the job with this token on this host, by their numbers.

    They have `dptrain.system.record.VARIABLE` with the token in the environment that they were started with.
    """

    def __init__(self, token: str) -> None:
        self._mark = f"{VARIABLE}={token}@".encode()

    def _environments(self) -> dict[int, bytes]:
        found = {}
        for path in PROC.glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
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

    def end(self) -> None:
        """SIGKILL, which also ends stopped processes, to all of them, until none is left."""
        deadline = time.monotonic() + GONE_SECONDS
        while left := self.all():
            if time.monotonic() > deadline:
                numbers = ", ".join(map(str, left))
                say(f"processes {numbers} of the job do not end, even by SIGKILL; check disk and network")
                return
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)


@contextmanager
def no_leftovers(token: str) -> Iterator[JobProcesses]:
    """Yield the processes of the job with this token; when the block ends, so do they and their shared memory."""
    processes, earlier = JobProcesses(token), segments()
    try:
        yield processes
    finally:
        processes.end()
        remove_unmapped(segments() - earlier)


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
def session_folder(environment: Mapping[str, str]) -> Iterator[tuple[dict[str, str], int]]:
    """A new folder for the session of Open MPI's mpirun: the variables that name it, and its lock, to be inherited.

    Open MPI names a session after mpirun's process number, and does not start ("listener thread failed to start") where
    a job that was killed, or one of another container, has left a session of the same number. The folder is removed
    after the block. So are folders of launchers that were killed. DptrainError where no folder can be made.

    A daemon on another host would make this folder and remove only what it has made inside; so it uses another one.
    """
    base = environment.get(SESSION_BASE)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DptrainError(
            f"no folder for mpirun's session: {error}; set TMPDIR to a folder on another disk"
        ) from error
    made = {name: value for name, value in environment.items() if name != SESSION_BASE}
    if base is not None:
        made.setdefault(REMOTE_BASE, base)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the folder is never taken for a stale one
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for other in folder.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_stale(other)
        yield made | {LOCAL_BASE: str(folder)}, lock
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_stale(folder: Path) -> None:
    """Remove a session folder of this user whose launcher and mpirun are dead; OSError if it is none or they live."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
