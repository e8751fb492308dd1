"""What a program reports about an exception: one line for people and an exit status."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import NamedTuple

from dptrain.errors import UNFORESEEN, DptrainError, LimitError, ReaderGoneError
from dptrain.system.signals import EndedBySignal
from dptrain.system.text import shown, shown_lines

MEMORY = "use a smaller --batch-size or network, fewer --threads, or fewer ranks on this machine"
PROCESSES = "the limit of processes is reached (ulimit -u): raise it, or use fewer --threads"
# Errors of the operating system that are no mistakes of this program, and what to do.
ADVICE = {
    errno.ENOMEM: MEMORY,
    errno.EAGAIN: PROCESSES,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, then start the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check the permissions"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENFILE), "check this machine and its file systems"),
    **dict.fromkeys((errno.ENOTDIR, errno.ELOOP), "check the folders and links of the path"),
}
TOO_LARGE = f"too large for memory; {MEMORY}"
# Messages of NumPy, the dynamic loader and Python about limits, and what to report instead.
REPORTS = {
    "Maximum allowed dimension exceeded": TOO_LARGE,
    "array is too big": TOO_LARGE,
    "too large to convert": TOO_LARGE,
    "cannot fit 'int'": TOO_LARGE,
    "failed to map segment": "out of memory while loading a library; raise the limit (ulimit -v)",
    "can't start new thread": f"no more threads can be started; {PROCESSES}",
    "home directory": "this user has no home directory; set HOME to a folder that can be written",
    "embedded null": "a path contains a NUL character; choose another name",
}


class Failure(NamedTuple):
    """A line to report, "" if the reader of the output is gone. An unforeseen exception has its traceback below it."""

    text: str
    status: int
    foreseen: bool = True


def failure(error: BaseException) -> Failure:
    """What to report about an exception."""
    if isinstance(error, ReaderGoneError):
        return Failure("", error.status)
    if isinstance(error, KeyboardInterrupt):
        status = error.status if isinstance(error, EndedBySignal) else 128 + signal.SIGINT
        return Failure(": ".join(["interrupted", *map(shown, error.args)]), status)
    known = error if isinstance(error, DptrainError) else refused(error)
    if known is not None:
        return Failure(shown(known) + shown_lines(known.details), known.status)
    import traceback

    what = traceback.format_exception_only(error)[-1].strip()
    lines = shown_lines("".join(traceback.format_exception(error)))
    return Failure(f"failed: {shown(what)}\n{lines}", UNFORESEEN, foreseen=False)


def refused(error: BaseException) -> DptrainError | None:
    """A LimitError that explains an exception caused by the operating system; None for any other exception."""
    text = shown(error)
    if isinstance(error, MemoryError):
        return LimitError(f"out of memory{': ' * bool(text)}{text}; {MEMORY}")
    if isinstance(error, RecursionError):
        return LimitError(f"nested too deeply: {text}")
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT and not _has_working_directory():
            return LimitError("the working directory no longer exists; change to another one")
        if error.errno not in ADVICE:
            return None
        where = f"{shown(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
        return LimitError(f"{where}{error.strerror}; {ADVICE[error.errno]}")
    if isinstance(error, ValueError | OverflowError | ImportError | RuntimeError):
        return next((LimitError(report) for words, report in REPORTS.items() if words in text), None)
    return None


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
