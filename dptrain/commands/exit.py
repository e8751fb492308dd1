"""How a command ends: the report of an exception, the exit status, and the end of the other ranks.

The statuses are in `dptrain.errors`; text and status of most exceptions come from `dptrain.system.failures`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from dptrain.errors import FAILED, PREEMPTED, READER_GONE, USAGE, DptrainError, PeerError, PreemptedError, RankLostError
from dptrain.health.interruption import AskedToEndError
from dptrain.system import record
from dptrain.system.failures import failure
from dptrain.system.streams import drop_failed_writes, finish_output, write_to_stderr
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

FINAL_WAIT = 5.0  # seconds to wait for other ranks at the end, where MPI_Finalize must not be called
FORWARDED = 0.1  # seconds in which mpirun reads the error; MPICH's drops what it has not read when a rank aborts


def may_retry(status: int) -> bool:
    """Whether the same command may succeed when it is started again."""
    return status not in (0, FAILED, USAGE, PREEMPTED, READER_GONE)


def end(error: BaseException, communicator: Communicator | None) -> int:
    """Report an exception and end the ranks; returns the exit status. `communicator` is None before MPI has started."""
    agreed = isinstance(error, DptrainError) and error.agreed
    if isinstance(error, PeerError):
        status = error.status  # the other rank reports it
    elif isinstance(error, PreemptedError):
        status, agreed = error.status, True
        _report_stop(str(error), by=error.by, checkpoint=error.checkpoint, run_dir=error.run_dir)
    elif isinstance(error, AskedToEndError):
        status = PREEMPTED
        _report_stop(f"stopped by {error} before the first step; nothing was lost")
    else:
        text, status, foreseen = failure(error)
        if text and communicator is not None and not agreed and (communicator.size > 1 or not foreseen):
            text = f"rank {communicator.rank} on {os.uname().nodename}{':' * foreseen} {text}"
        if text:
            write_to_stderr(f"dptrain: error: {text}")
        record.report_end(status, text.split("\n")[0], retry=may_retry(status))
    if communicator is None:
        drop_failed_writes()
        return status
    return leave(communicator, status) if agreed else _abort(communicator, status)


def _report_stop(text: str, **more: str) -> None:
    """Report the end by a signal: to the launcher, which prints it, or else on standard error."""
    if not record.report_end(PREEMPTED, text, more=more):
        write_to_stderr(f"dptrain: {shown(text)}")


def end_at_once(communicator: Communicator, status: int) -> None:
    """End the job on a second signal; called in a thread of this process."""
    record.report_end(status, "ended by a second signal")
    communicator.end_job(status)


def leave(communicator: Communicator, status: int) -> int:
    """The exit status, where every rank ends by itself."""
    drop_failed_writes()  # from here on the status is decided
    if communicator.survives:
        # After a death MPI_Finalize hung in 4 of 28 runs (measured, Open MPI 5.0.11), and a rank may die just now. But
        # ranks must wait for each other: after a rank has left with an error, mpirun drops the output of the others.
        finish_output()
        guard = threading.Timer(FINAL_WAIT, os._exit, (status,))
        guard.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads can be started
            guard.start()
        with contextlib.suppress(RankLostError):
            communicator.confirm()
        os._exit(status)
    return status


def _abort(communicator: Communicator, status: int) -> int:
    """End every rank: the others may be waiting for this one."""
    from dptrain.system.launched import launched_size

    drop_failed_writes()
    finish_output()
    if communicator.size > 1:
        time.sleep(FORWARDED)
    communicator.abort(status)
    if communicator.size == 1 and launched_size() is not None:
        os._exit(status)  # interrupted while MPI started: leaving through MPI_Finalize would wait for the others
    return status
