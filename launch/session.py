"""A folder for the session of Open MPI's mpirun; MPICH's keeps none.

Open MPI names a session after mpirun's process number, and does not start ("listener thread failed to start") where a
job that was killed, or one of another container, has left a session of the same number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dptrain.errors import DptrainError

SESSION_BASE = "PRTE_MCA_prte_tmpdir_base"  # where mpirun and its daemons on other hosts make their session folders
LOCAL_BASE, REMOTE_BASE = "PRTE_MCA_prte_local_tmpdir_base", "PRTE_MCA_prte_remote_tmpdir_base"
PREFIX = "mpirun-"
LOCK = "dptrain-launch.lock"  # locked as long as the launcher or its mpirun lives


@contextmanager
def session_folder(environment: Mapping[str, str]) -> Iterator[tuple[Path, int]]:
    """A new folder of this attempt's own, and the descriptor of its lock for mpirun to inherit.

    It is removed after the block. So are folders of launchers that were killed. Raises DptrainError where no folder can
    be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=environment.get(SESSION_BASE)))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DptrainError(f"no folder for mpirun's session: {error}; TMPDIR can name another disk") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the folder is never taken for a stale one
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_stale(folder.parent)
        yield folder, lock
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def session_variables(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment in which mpirun uses `folder` on this host, and daemons on other hosts what they use anyway.

    A daemon on another host would make this folder, and remove only what it has made inside.
    """
    made = dict(environment)
    base = made.pop(SESSION_BASE, None)
    if base is not None:
        made.setdefault(REMOTE_BASE, base)
    return made | {LOCAL_BASE: str(folder)}


def remove_stale(base: Path) -> None:
    """Remove session folders of this user whose launcher and mpirun are dead."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                _remove_if_stale(folder)


def _remove_if_stale(folder: Path) -> None:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
