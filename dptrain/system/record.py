"""The status record of a command: how it ended, sent to the launcher over TCP.

    begin()                                      # first of all; without the launcher this module does nothing
    report_end(0)                                # success: by the rank that reports, at the end of every command
    report_end(1, "no such file", retry=False)   # failure: by the rank that prints the error

mpirun's exit status is not enough: Open MPI's returns 0 when a host is lost, or when all ranks of an elastic job die.
The launcher listens on a port of its host, as mpirun does for its daemons on other hosts. So a record arrives from
every host on which mpirun can start ranks, without a shared file system and without parsing their output. A record
contains the secret token of the attempt. The launcher confirms it, so it is not lost when the process ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

VARIABLE = "DPTRAIN_LAUNCHER"  # TOKEN@PORT@ADDRESS,ADDRESS,...; set by the launcher
OWNER = "DPTRAIN_REPORTER"  # the process that may report: a program that a user's layer starts must not
LONGEST_REASON = 300  # characters
LONGEST_RECORD = 1 << 16  # bytes that the launcher reads
CONFIRMED = b"ok\n"
PATIENCE = 5.0  # seconds to wait for the launcher, for each of its addresses

_launcher = ""


def begin() -> None:
    """Prepare to report, if the launcher has started this process."""
    global _launcher
    process = str(os.getpid())
    if os.environ.get(VARIABLE) and os.environ.setdefault(OWNER, process) == process:
        _launcher = os.environ[VARIABLE]


def launched() -> bool:
    """Whether the launcher has started this process and waits for its record."""
    return bool(_launcher) and os.environ.get(OWNER) == str(os.getpid())


def report_end(status: int, reason: str = "", *, retry: bool = False, more: Mapping[str, str] | None = None) -> bool:
    """Send the record, once for a process; False where there is no launcher or it does not confirm.

    `retry`: whether the same command may succeed when it is started again. `more`: further facts for the launcher.
    """
    global _launcher
    if not launched():
        return False
    import json
    import socket

    (token, port, addresses), _launcher = _launcher.split("@"), ""
    record = {**(more or {}), "token": token, "status": status, "reason": reason[:LONGEST_REASON], "retry": retry}
    for address in addresses.split(","):
        with contextlib.suppress(OSError), socket.create_connection((address, int(port)), PATIENCE) as connection:
            connection.sendall(json.dumps(record).encode("ascii") + b"\n")
            if connection.recv(len(CONFIRMED)) == CONFIRMED:
                return True
    return False
