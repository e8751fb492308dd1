"""What signals to the launcher do to its job.

A signal of `dptrain.system.signals.ENDING` asks the job to end, and nothing is restarted. `dptrain train` then saves a
checkpoint and ends with status 75. A second request ends the job at once. Ctrl-Z (SIGTSTP) stops the ranks and then the
launcher; `fg` and `bg` (SIGCONT) continue all.
"""

from __future__ import annotations

import math
import signal
import subprocess
import time
from dataclasses import replace
from types import FrameType

from dptrain.errors import FAILED, PREEMPTED, UNFORESEEN
from dptrain.system.signals import SAME_REQUEST, handled

from .cleanup import JobProcesses, send
from .output import SCREEN, report
from .targets.target import Outcome, signal_name

# A terminal sends these to stop a job: Ctrl-Z, and reading or writing in the background.
STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
END_SECONDS = 1.0
KEYS = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGQUIT): "Ctrl-\\"}


class Signals:
    """The requests to end so far, and the job that they go to."""

    def __init__(self, save_signal: int | None) -> None:
        self.save_signal = save_signal  # asks the ranks to save a checkpoint and end; None: the command saves none
        self.requests: list[int] = []  # the first signal of each request
        self.passed: int | None = None  # the signal that mpirun received for the first one
        self._last_request = -math.inf
        self.process: subprocess.Popen[bytes] | None = None
        self.processes: JobProcesses | None = None
        self._kill_at = math.inf

    def install(self) -> None:
        """Handle signals from now on; those that are ignored stay ignored."""
        for number in handled():
            signal.signal(number, self.handle)
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.stop)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of signals that ask the job to end. Those within 2 s are one request."""
        now = time.monotonic()
        if now - self._last_request <= SAME_REQUEST:
            return
        self._last_request = now
        self.requests.append(number)
        if self.process is not None:
            self._pass_on(number, self.process)

    def _pass_on(self, number: int, process: subprocess.Popen[bytes]) -> None:
        name = signal_label(number)
        if self.passed is not None:
            report(f"{name}: ending the job at once")
            self._kill_at = min(self._kill_at, time.monotonic() + END_SECONDS)
            process.send_signal(signal.SIGTERM)
            return
        action = "saving a checkpoint, then ending the run"
        self.passed = self.save_signal
        if self.passed is None:
            action = "ending the job"
            self.passed = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM  # mpirun ends by these
        # Printed first: mpirun may end the ranks before they print anything.
        report(f"{name}: {action}; another {KEYS.get(number, 'signal')} after {SAME_REQUEST:g} s ends it at once")
        process.send_signal(self.passed)

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """The handler of Ctrl-Z: stop the ranks and this process; continue the ranks when this process continues.

        mpirun is stopped only if there are no ranks yet: it uses no time, and ends the ranks if the launcher is killed
        meanwhile. That of Open MPI passes SIGTSTP and SIGCONT on to ranks on other hosts.
        """
        before = {each: signal.signal(each, signal.SIG_IGN) for each in STOPPING}
        stopped = time.monotonic()
        if self.process is not None:
            self.process.send_signal(signal.SIGTSTP)
        reached: set[int] = set()
        processes = self.processes
        while processes and (new := set(processes.find(only_ranks=True) or processes.find()) - reached):
            send(new, signal.SIGSTOP)
            reached |= new  # and look again, as a rank may just have forked a worker
        SCREEN.end_view()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when this process is continued
        for each, handler in before.items():
            signal.signal(each, handler)
        self._kill_at += time.monotonic() - stopped
        if processes is not None:
            send(processes.find(), signal.SIGCONT)  # the processes of this host; mpirun reaches the others

    def wait_for(self, process: subprocess.Popen[bytes], processes: JobProcesses) -> int:
        """Popen's return code of mpirun; it is killed some time after a second request, or after its ranks are gone."""
        if self.requests and self.passed is None:
            self._pass_on(self.requests[-1], process)
        while process.poll() is None:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if time.monotonic() > self._kill_at or processes.ranks_are_gone():
                    process.kill()
        self.process = self.processes = None
        return process.returncode

    def pause(self, seconds: float) -> bool:
        """Sleep until the time is over or a signal asks to end; returns whether one did."""
        deadline = time.monotonic() + seconds
        while not self.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(self.requests)

    def explain(self, ended: Outcome, record: Outcome | None) -> Outcome:
        """How the job ended, by its record, or else by the signals and the target's `ended`."""
        # A rank that mpirun has ended by a signal after the death of another one reports a stop.
        if record is not None and not (
            record.status == PREEMPTED and "checkpoint" not in record.more and ended.rank_died
        ):
            ended = record
        by = signal_label(self.requests[0]) if self.passed else ended.more.get("by")
        if ended.reported and ended.status == PREEMPTED and by:
            saved = ended.more.get("checkpoint")
            what = f": {saved} is saved" if saved else " before the first step: nothing was lost"
            return replace(ended, reason=f"stopped by {by}{what}")
        if ended.reported or self.passed is None:
            return ended
        status, reason = ended.status, ended.reason
        repeated, last = len(self.requests) > 1, self.requests[-1]
        # Ranks that do not handle the signal yet die of it; mpirun may end with a status of its own after SIGTERM.
        if self.save_signal is not None and not repeated:
            if status in (UNFORESEEN, 128 + self.passed):
                status = PREEMPTED
                reason = f"stopped by {by} before the run handled signals; the checkpoints so far are kept"
        elif status in (UNFORESEEN, FAILED, 128 + self.passed, 128 + signal.SIGTERM):
            status, reason = 128 + last, f"ended by {by}"
        if repeated:
            reason = f"ended at once by a second signal, {signal_label(last)}"
        return replace(ended, status=status, reason=reason, final=True)


def signal_label(number: int) -> str:
    """A signal with the key that sends it: Ctrl-C (SIGINT)."""
    return f"{KEYS[number]} ({signal_name(number)})" if number in KEYS else signal_name(number)
