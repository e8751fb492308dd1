"""What signals to the launcher do to its job.

A signal that announces an end (`dptrain.system.signals.ENDING`) asks the job to end, and nothing is started again.
`dptrain train` then saves a checkpoint and ends with status 75. A second request ends the job at once. Ctrl-Z (SIGTSTP)
stops the ranks and then the launcher; `fg` and `bg` (SIGCONT) continue all.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from dptrain.errors import FAILED, PREEMPTED, UNFORESEEN
from dptrain.system.signals import ENDING, SAME_REQUEST, handled

from .cleanup import JobProcesses
from .output import SCREEN, say
from .status import Outcome
from .targets.target import signal_name

# A terminal sends these to stop a job: Ctrl-Z, and reading or writing in the background.
STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
END_SECONDS = 1.0
KEYS = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGQUIT): "Ctrl-\\"}
BEFORE_HANDLING = "asked to end before it handled signals"


class Signals:
    """The requests to end so far, and the mpirun that they go to.

    save_signal  asks the ranks to save a checkpoint and end; None for a command that saves none
    requests     the first signal of each request
    passed       the signal that mpirun received for the first one, None before that
    processes    those of the job, None before there is one
    """

    def __init__(self, save_signal: int | None) -> None:
        self.save_signal = save_signal
        self.requests: list[int] = []
        self.passed: int | None = None
        self.processes: JobProcesses | None = None
        self._last_request = -math.inf
        self._process: subprocess.Popen[bytes] | None = None
        self._kill_at = math.inf

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of signals that announce an end. Those within 2 s are one request."""
        now = time.monotonic()
        if now - self._last_request <= SAME_REQUEST:
            return
        self._last_request = now
        self.requests.append(number)
        if self._process is not None:
            self._pass_on(number, self._process)

    def _pass_on(self, number: int, process: subprocess.Popen[bytes]) -> None:
        name = described(number)
        if self.passed is not None:
            say(f"{name}: ending the job at once")
            self._kill_at = min(self._kill_at, time.monotonic() + END_SECONDS)
            process.send_signal(signal.SIGTERM)
            return
        own = number if number in (signal.SIGINT, signal.SIGTERM) else signal.SIGTERM  # mpirun ends by these
        saves = self.save_signal is not None
        self.passed = own if self.save_signal is None else self.save_signal
        # Printed first: mpirun may end the ranks before they print anything.
        again = f"{KEYS.get(number, 'a signal')} again, after {SAME_REQUEST:g} s, ends it at once"
        say(f"{name}: {'saving a checkpoint, then ending the run' if saves else 'ending the job'}; {again}")
        process.send_signal(self.passed)

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """The handler of Ctrl-Z: stop the ranks and this process; continue the ranks when this process continues.

        mpirun is stopped only if there are no ranks yet: it uses no time, and ends the ranks if the launcher is killed
        meanwhile. That of Open MPI passes SIGTSTP and SIGCONT on to ranks on other hosts.
        """
        before = {each: signal.signal(each, signal.SIG_IGN) for each in STOPPING}
        stopped = time.monotonic()
        self._stop_job()
        SCREEN.show_cursor()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when this process is continued
        self._kill_at += time.monotonic() - stopped
        self._continue_job()
        for each, handler in before.items():
            signal.signal(each, handler)

    def _stop_job(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTSTP)
        reached: set[int] = set()
        processes = self.processes
        while processes and (new := set(processes.ranks() or processes.all()) - reached):
            send(new, signal.SIGSTOP)
            reached |= new  # and look again, as a rank may just have forked a worker

    def _continue_job(self) -> None:
        if self.processes is not None:
            send(self.processes.all(), signal.SIGCONT)  # the processes of this host; mpirun reaches the others

    def wait_for(self, process: subprocess.Popen[bytes], abandoned: Callable[[], bool]) -> int:
        """Popen's return code of mpirun, to which signals go meanwhile; those received just before go there too.

        It is killed when it is found `abandoned`.
        """
        self._process = process
        if self.requests and self.passed is None:
            self._pass_on(self.requests[-1], process)
        while True:
            try:
                returncode = process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if time.monotonic() > self._kill_at or abandoned():
                    process.kill()
                continue
            self._process = self.processes = None
            return returncode

    def pause(self, seconds: float) -> bool:
        """Sleep, and return whether a request to end has come by the end of it; one ends the sleep."""
        deadline = time.monotonic() + seconds
        while not self.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(self.requests)

    def explain(self, ended: Outcome) -> Outcome:
        """The outcome of a job that was asked to end; where the job has no record of its own, by the signals."""
        if not self.requests or self.passed is None:
            return ended
        first, last = self.requests[0], self.requests[-1]
        if ended.record is not None:
            return replace(ended, reason=f"stopped by {described(first)}") if ended.status == PREEMPTED else ended
        by_signal = ended.status in (FAILED, UNFORESEEN, 128 + self.passed, 128 + signal.SIGTERM)
        status, reason = ended.status, ended.reason
        if len(self.requests) > 1:
            status, reason = (
                (128 + last if by_signal else status),
                f"ended at once by a second signal, {described(last)}",
            )
        elif by_signal and self.save_signal is None:
            status, reason = 128 + first, f"ended by {described(first)}"
        elif status in (128 + self.passed, UNFORESEEN):  # ranks that do not handle the signal yet die of it
            status, reason = PREEMPTED, BEFORE_HANDLING
        return replace(
            ended, status=status, reason=reason, final=True, explained=ended.explained or reason != ended.reason
        )


@contextmanager
def handled_signals(save_signal: int | None) -> Iterator[Signals]:
    """Within the block, signals are handled by the yielded object; those that are ignored stay ignored."""
    signals = Signals(save_signal)
    stopping = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, signals.handle) for number in handled()}
    previous |= {number: signal.signal(number, signals.stop) for number in stopping}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def send(processes: Iterable[int], number: int) -> None:
    """Send a signal to those of the processes that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def with_default_signals() -> None:
    """In mpirun before it starts: it gets no signal but the launcher's, so none may be ignored or blocked."""
    for number in (*ENDING, *STOPPING, signal.SIGCONT, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def described(number: int) -> str:
    """A signal as people know it: Ctrl-C (SIGINT)."""
    return f"{KEYS[number]} ({signal_name(number)})" if number in KEYS else signal_name(number)
