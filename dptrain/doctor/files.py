"""Disks, shared memory, and the limits of files and processes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dptrain.doctor.finding import Check, Finding, failure, ok, warning
from dptrain.system.cgroups import ROOT, process_room
from dptrain.system.cores import LOCAL_RANKS
from dptrain.system.launched import first_number
from dptrain.system.text import shown

MIB, GIB = 1 << 20, 1 << 30
LEAST_DISK = GIB
TRIAL = MIB  # bytes that are written to find out whether a folder can be written
SHARED_MEMORY = Path("/dev/shm")
SHARED_BY_RANK = 16 * MIB  # that Open MPI 5.0.11 takes for each rank; MPICH 5.0.2 takes 1 MiB (measured)
THREADS = 32  # that are started as a trial
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Limit(NamedTuple):
    """A limit of the operating system: too little is a warning below `least`, a failure below `needed`."""

    kind: int
    name: str
    flag: str  # of ulimit
    needed: int
    least: int
    unit: str = ""


LIMITS = (
    # A rank has some 30 open files, and Open MPI's mpirun 4 for each rank (measured).
    Limit(resource.RLIMIT_NOFILE, "open files", "-n", 64, 512),
    Limit(resource.RLIMIT_NPROC, "user processes", "-u", 64, 512),
    Limit(resource.RLIMIT_AS, "address space", "-v", GIB, 4 * GIB, "bytes"),
    Limit(resource.RLIMIT_FSIZE, "file size", "-f", 16 * MIB, GIB, "bytes"),
    Limit(resource.RLIMIT_CPU, "CPU time", "-t", 60, 3600, "seconds"),
)


def checks() -> list[Check]:
    free = "free some space, or use another disk"
    return [
        Check(
            "working directory", lambda: check_folder(Path.cwd()), "change to a folder that exists and can be written"
        ),
        Check(
            "temporary files", lambda: check_folder(Path(tempfile.gettempdir())), "set TMPDIR to a folder with space"
        ),
        Check("file locks", lambda: check_locks(Path.cwd()), "change to a folder that exists and can be written"),
        Check("shared memory", check_shared_memory, f"mount /dev/shm, or {free}"),
        *(Check(limit.name, partial(check_limit, limit), f"see ulimit {limit.flag}") for limit in LIMITS),
        Check("threads", check_threads, "raise the limit of processes (ulimit -u), or that of the container or job"),
    ]


def check_folder(folder: Path) -> Finding:
    """Write a file of 1 MiB to the disk, so that a quota is noticed too; then see how much space is left."""
    name = shown(folder)
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".dptrain-doctor-") as file:
            file.write(bytes(TRIAL))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "check its permissions, free some space, or change to another folder (TMPDIR for temporary files)"
        return failure(f"{name} cannot be written: {error.strerror}", remedy)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < LEAST_DISK:
        remedy = "free some space: a checkpoint that cannot be written ends a run"
        return warning(f"{name} has {free / MIB:,.0f} MiB free, expected at least 1 GiB", remedy, free=free)
    return ok(f"{name} can be written, {_at_least(free)} free", free=free)


def _at_least(size: int) -> str:
    """GiB, rounded down to a power of 2: all ranks of a host find the same."""
    return f"at least {1 << (size // GIB).bit_length() - 1:,} GiB"


def check_locks(folder: Path) -> Finding:
    """Whether a run folder can be locked against a second run, and how HDF5 is configured to lock files."""
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    told = f"; HDF5_USE_FILE_LOCKING={shown(setting, 40)}" if setting is not None else ""
    with tempfile.TemporaryFile(dir=folder, prefix=".dptrain-doctor-") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            remedy = "do not start two runs in one run folder; for own HDF5 programs set HDF5_USE_FILE_LOCKING=FALSE"
            return warning(f"{shown(folder)} has a file system without locks{told}", remedy)
    return ok(f"files of the working directory can be locked{told}")


def check_shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Ranks of one host exchange their data through /dev/shm."""
    if not os.access(folder, os.W_OK):
        remedy = "mount it (mount -t tmpfs tmpfs /dev/shm), or start the container with it; MPI needs it within a host"
        return failure(f"{folder} does not exist or cannot be written", remedy)
    disk = os.statvfs(folder)
    free, ranks = disk.f_bavail * disk.f_frsize, max(first_number(LOCAL_RANKS), len(os.sched_getaffinity(0)))
    if free < SHARED_BY_RANK * ranks:
        found = (
            f"{folder} has {free / MIB:,.0f} MiB free, but {ranks} ranks may take {SHARED_BY_RANK * ranks / MIB:.0f}"
        )
        remedy = "make it larger: docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm; or remove old files"
        return warning(found, remedy, free=free)
    return ok(f"{folder} can be written, {disk.f_blocks * disk.f_frsize / MIB:,.0f} MiB", free=free)


def check_limit(limit: Limit) -> Finding:
    """A limit that the shell, container or batch system has set."""
    soft, hard = resource.getrlimit(limit.kind)
    facts = {"soft": soft, "hard": hard}
    if soft == resource.RLIM_INFINITY:
        return ok("no limit", **facts)
    text = f"at most {soft:,} {limit.unit}".rstrip()
    if soft >= limit.least:
        return ok(text, **facts)
    most = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    remedy = f"raise it with ulimit {limit.flag} (this user may set it to {most}), or in /etc/security/limits.conf"
    found = f"{text}, expected at least {limit.least:,}"
    return (failure if soft < limit.needed else warning)(found, remedy, **facts)


def check_threads(root: Path = ROOT) -> Finding:
    """Start some threads at the same time, and see how many a control group below `root` still allows."""
    room, end, started = process_room(root), threading.Event(), 0
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(THREADS)]
    try:
        for thread in threads:
            thread.start()
            started += 1
    except RuntimeError:
        remedy = "raise the limit of processes: ulimit -u, or that of the container or job (docker run --pids-limit)"
        return failure(f"no more than {started} threads can be started", remedy)
    finally:
        end.set()
        for thread in threads[:started]:
            thread.join()
    if room is not None and room < 4 * THREADS:
        remedy = "raise the limit of the container or job (docker run --pids-limit), or start fewer ranks"
        return warning(f"the control group allows {room} more processes and threads", remedy, room=room)
    return ok(f"{THREADS} can be started", room=room)
