"""The final record of a command: one line on standard error that tells the launcher how the command ended.

    begin()                                      # first of all; without the launcher this module does nothing
    report_end(0)                                # success: by the rank that reports, at the end of every command
    report_end(1, "no such file", retry=False)   # failure: by the rank that prints the error

    dptrain-status TOKEN {"status": 1, "reason": "no such file", "retry": false}

mpirun's exit status is not enough: Open MPI's returns 0 when a host is lost, or when all ranks of an elastic job die.
Standard error reaches the launcher from every host, without a shared file system. The launcher recognises the line by
the secret token of its attempt, and does not show it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import stat
import termios
import time
from collections.abc import Mapping
from typing import Any

VARIABLE = "DPTRAIN_ATTEMPT"  # the token, set by the launcher; a hexadecimal number
OWNER = "DPTRAIN_REPORTER"  # the process that may report: a program that a user's layer starts must not
WORD = "dptrain-status"
LONGEST_REASON = 300  # characters
LONGEST_LINE = 4000  # bytes: a pipe takes up to 4,096 in one piece, and Open MPI passes on as many in one piece
PATIENCE = 0.5  # seconds to wait for mpirun to read

_descriptor: int | None = None  # a copy of standard error, which a user's code may close
_token = ""


def begin() -> None:
    """Get ready to report, if the launcher has started this process."""
    global _descriptor, _token
    process = str(os.getpid())
    token = os.environ.get(VARIABLE, "")
    if token and os.environ.setdefault(OWNER, process) == process:
        with contextlib.suppress(OSError):
            _descriptor, _token = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3), token


def launched() -> bool:
    """Whether the launcher has started this process and waits for its record."""
    return _descriptor is not None and os.environ.get(OWNER) == str(os.getpid())


def report_end(status: int, reason: str = "", *, retry: bool = False, more: Mapping[str, str] | None = None) -> bool:
    """Write the record, once for a process; False where there is no launcher or it cannot be written.

    `retry`: whether the same command may succeed when it is started again. `more` is what else the launcher shows.
    """
    global _descriptor
    if not launched() or _descriptor is None:
        return False
    descriptor, _descriptor = _descriptor, None
    record = {"status": status, "reason": reason[:LONGEST_REASON], "retry": retry}
    line = _line({**record, **(more or {})})
    if len(line) > LONGEST_LINE:
        line = _line(record)
    with contextlib.suppress(OSError):
        # Of a pipe that is empty mpirun reads the whole line at once, and no line of another rank comes between.
        _wait_until_read(descriptor)
        written = os.write(descriptor, line)
        _wait_until_read(descriptor)  # mpirun may drop what it has not read when this process ends
        return written == len(line)
    return False


def _line(record: dict[str, Any]) -> bytes:
    return f"{WORD} {_token} {json.dumps(record)}\n".encode("ascii")


def _wait_until_read(descriptor: int) -> None:
    """Until the pipe is empty, at most PATIENCE."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    waiting = array.array("i", [0])
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
        if waiting[0] == 0:
            return
        time.sleep(0.001)
