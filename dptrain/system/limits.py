"""One-line errors for what the operating system refuses: memory, threads, open files, paths."""

from __future__ import annotations

import errno
import os
import traceback

from dptrain.errors import DptrainError, LimitError
from dptrain.system.cgroups import memory_limit
from dptrain.system.text import shown

MEMORY = "use a smaller --batch-size or network, fewer --threads, or fewer ranks on this machine"
SPACE = "free some space, then start the same command again"
ADVICE = {
    errno.ENOMEM: MEMORY,
    errno.EAGAIN: "the limit of processes is reached (ulimit -u): raise it, or use fewer --threads",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links form a circle",
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: SPACE,
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk or network file system",
    errno.ESTALE: "check the network file system",
    errno.ENOTDIR: "a file has the name of a folder",
}
TOO_LARGE = f"too large for memory; {MEMORY}"
NOT_LOADED = "out of memory while loading a library; raise the limit (ulimit -v)"
# Messages of NumPy, the dynamic loader and Python about limits, and what to report instead.
REPORTS = {
    "Maximum allowed dimension exceeded": TOO_LARGE,
    "array is too big": TOO_LARGE,
    "too large to convert": TOO_LARGE,
    "cannot fit 'int'": TOO_LARGE,
    "failed to map segment": NOT_LOADED,
    "annot allocate memory": NOT_LOADED,
    "can't start new thread": f"no more threads can be started; {ADVICE[errno.EAGAIN]}",
    "home directory": "this user has no home directory; set HOME to a folder that can be written",
    "embedded null": "a path contains a NUL character; choose another name",
}


def check_memory(size: int, what: str) -> None:
    """LimitError if `size` bytes for `what` are more than this machine or this control group has.

    The system would grant the memory, and kill a process when it is used.
    """
    limit = memory_limit()
    if limit is not None and size > limit:
        gib = 1 << 30
        raise LimitError(
            f"{what} need at least {size / gib:,.1f} GiB of memory, found {limit / gib:,.1f} GiB; use a smaller "
            "network (--model-options), or ranks on more machines"
        )


def refused(error: BaseException) -> DptrainError | None:
    """A LimitError that explains an exception caused by the operating system; None for any other exception."""
    text = str(error)
    if isinstance(error, MemoryError):
        return LimitError(f"out of memory{': ' * bool(text)}{shown(text)}; {MEMORY}")
    if isinstance(error, RecursionError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return LimitError(f"nested too deeply, in {shown(frame.filename)}, line {frame.lineno}: {shown(text)}")
    if isinstance(error, OSError):
        return _refused_by_the_system(error)
    if not isinstance(error, ValueError | OverflowError | ImportError | RuntimeError):
        return None
    return next((LimitError(report) for words, report in REPORTS.items() if words in text), None)


def _refused_by_the_system(error: OSError) -> DptrainError | None:
    if error.errno == errno.ENOENT and error.filename is None and _has_no_working_directory():
        return LimitError("the working directory no longer exists; change to another one")
    if error.errno not in ADVICE:
        return None
    where = f"{shown(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
    return LimitError(f"{where}{error.strerror}; {ADVICE[error.errno]}")


def _has_no_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd is the same call
    except OSError:
        return True
    return False
