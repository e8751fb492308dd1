"""Signals that announce the end of a process, and the state of signals that every program starts from.

prepare_signals()           # first of all, in every program
for number in handled(): signal.signal(number, handler)
"""

from __future__ import annotations

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
