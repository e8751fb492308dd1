"""Signals that request the end of a process, and the initial signal state of every program.

prepare_signals()           # first of all, in every program
for number in handled(): signal.signal(number, handler)
"""

from __future__ import annotations

import atexit
import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A closed terminal or connection (HUP), Ctrl-C (INT), Ctrl-\ (QUIT), the end of a job (TERM), a warning before it from
# Slurm, LSF or SGE (USR1, USR2), a limit of CPU time (XCPU), a power failure (PWR). Not here: signals of faults (SEGV,
# ABRT), of timers that a user's code may set (ALRM, VTALRM, PROF), and of a terminal's Ctrl-Z (TSTP, CONT).
_NAMES = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR")
ENDING = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)

# Seconds in which further signals belong to the request of the first. `timeout` and some MPIs signal a process and then
# its group; Slurm sends SIGTERM to every process while the batch script's trap sends SIGUSR1.
SAME_REQUEST = 2.0

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _in_main_thread() -> bool:
    """Python can set signal handlers only there."""
    return threading.current_thread() is threading.main_thread()


def handled() -> list[signal.Signals]:
    """The signals of ENDING that this process handles; none outside the main thread.

    A signal that was ignored when the program started stays ignored: a shell starts `command &` in a script with SIGINT
    ignored, `nohup command` with SIGHUP ignored.
    """
    return [number for number in ENDING if _in_main_thread() and signal.getsignal(number) is not signal.SIG_IGN]


class EndedBySignal(KeyboardInterrupt):
    """A signal asked the program to end; the text is the signal's name. `status` is the exit status, 128 + n."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def ended_by_exception() -> Iterator[None]:
    """Within the block, a signal of ENDING raises EndedBySignal; further signals of the same request are ignored."""
    first: float | None = None

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            ignore_at_exit()
        elif now - first <= SAME_REQUEST:
            return
        raise EndedBySignal(number)

    before = {number: signal.signal(number, end) for number in handled()}
    try:
        yield
    finally:
        if first is None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Delay the signals of ENDING until after the block.

    For a fork, and for calls of h5py: both lose an exception that a signal handler raises. This sets handlers, not the
    signal mask, because a thread of a library may receive the signal.
    """
    before = {number: handler for number in handled() if (handler := signal.getsignal(number)) is not None}
    arrived: list[int] = []
    for number in before:
        signal.signal(number, lambda caught, _frame: arrived.append(caught))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, handler in before.items():
            if number in arrived and callable(handler):
                handler(number, None)  # not raised again: the wakeup descriptor has received it already
            elif number in arrived:
                signal.raise_signal(number)


def leave_signals_to_parent() -> None:
    """For a forked worker: a terminal or a scheduler signals all processes of a job; the parent handles the signal."""
    signal.set_wakeup_fd(-1)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """For a forked worker: the kernel kills this process when the thread that has forked it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def ignore_at_exit() -> None:
    """Ignore signals while Python and MPI end: more signals of the same request must not change the exit status."""
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in ENDING])


def keep_dispositions() -> None:
    """Undo what loading MPI has changed: ignored signals are ignored again, and SIGHUP ends the process.

    UCX, a library below MPI, handles SIGHUP by writing all its debug messages to the terminal.
    """
    for number in ENDING if _in_main_thread() else ():
        before = signal.getsignal(number)  # the state that Python knows, without changes by C libraries
        if before is signal.SIG_IGN or (number == signal.SIGHUP and before is signal.SIG_DFL):
            signal.signal(number, before)


def prepare_signals() -> None:
    """Undo settings that a parent process may pass on by accident.

    If SIGCHLD is ignored, the kernel forgets how a child ended, and every child seems to have returned 0. A blocked
    signal would never arrive; a parent that does not want a signal to arrive ignores it instead.
    """
    if _in_main_thread():
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT})
