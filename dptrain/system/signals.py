"""Signals that announce the end of a process, and the state of signals that every program starts from.

prepare_signals()           # first of all, in every program
for number in handled(): signal.signal(number, handler)
"""

from __future__ import annotations

import atexit
import signal
import threading

# A closed terminal or connection (HUP), Ctrl-C (INT), Ctrl-\ (QUIT), the end of a job (TERM), a warning before it from
# Slurm, LSF or SGE (USR1, USR2), a limit of CPU time (XCPU), a power failure (PWR). Not here: signals of faults (SEGV,
# ABRT), of timers that a user's code may set (ALRM, VTALRM, PROF), and of a terminal's Ctrl-Z (TSTP, CONT).
_NAMES = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR")
ENDING = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)

# Seconds in which further signals belong to the request of the first. `timeout` and some MPIs signal a process and then
# its group; Slurm sends SIGTERM to every process while the batch script's trap sends SIGUSR1.
SAME_REQUEST = 2.0


def handled() -> list[signal.Signals]:
    """Those of ENDING that this process handles: a signal that was ignored when the program started stays ignored.

    A shell starts `command &` in a script with SIGINT ignored, `nohup command` with SIGHUP ignored.
    """
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def ignore_at_exit() -> None:
    """For a program that ends because of a signal: more signals of the same request must not change its exit status.

    Python resets all handlers before it ends, and before MPI is finalized; signals that are ignored stay so.
    """
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in ENDING])


def keep_dispositions() -> None:
    """To be called once MPI is loaded: signals that were ignored before are ignored again, and SIGHUP ends a process.

    UCX, a library below MPI, handles SIGHUP by writing all its debug messages to the terminal, and other libraries may
    handle more.
    """
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            before = signal.getsignal(number)  # as Python knows it: what a library has done does not show here
            if before is signal.SIG_IGN or (number == signal.SIGHUP and before is signal.SIG_DFL):
                signal.signal(number, before)


def prepare_signals() -> None:
    """Undo what a parent process may leave behind by accident; does nothing outside the main thread.

    Where SIGCHLD is ignored, the kernel forgets how a child ended, and every child seems to have returned 0. A signal
    that is blocked would never arrive; who wants a signal not to arrive ignores it instead.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT})
