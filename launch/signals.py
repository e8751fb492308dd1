"""What SIGINT, SIGTERM and SIGUSR1 to the launcher do to its job.

The first asks the job to end, and nothing is started again. `dptrain train` saves a checkpoint then and ends
with status 75. A second signal ends the job at once.
"""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .mpirun import Kind
from .relay import say

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# How to ask ranks to save a checkpoint. On SIGINT and SIGTERM Open MPI's mpirun kills them within 0.5 s; from
# MPICH's ranks SIGUSR1 gets lost before the trainer handles it, as MPICH handles it itself.
ASKS = {Kind.OPEN_MPI: signal.SIGUSR1, Kind.MPICH: signal.SIGTERM}
END_SECONDS = 1.0


class Signals:
    """The signals received so far, and the mpirun that they go to.

    `saves`: the ranks save a checkpoint when asked to end. `passed` is the first signal that mpirun got, None
    before it.
    """

    def __init__(self, kind: Kind, saves: bool) -> None:
        self.kind, self.saves = kind, saves
        self.received: list[int] = []
        self.passed: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._kill_at = math.inf

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of Python's signal module."""
        self.received.append(number)
        if self._process is not None:
            self._pass_on(number, self._process)

    def _pass_on(self, number: int, process: subprocess.Popen[bytes]) -> None:
        name = signal.Signals(number).name
        if self.passed is not None:
            say(f"{name}: the job ends at once")
            self._kill_at = min(self._kill_at, time.monotonic() + END_SECONDS)
            process.send_signal(signal.SIGTERM)
            return
        self.passed = ASKS[self.kind] if self.saves else number
        # Said first: mpirun may end the ranks before they can say a word.
        if self.saves:
            say(f"{name}: the run saves a checkpoint and ends; a second signal ends it at once")
        else:
            say(f"{name} passed on; a second signal ends the job at once")
        process.send_signal(self.passed)

    def wait_for(self, process: subprocess.Popen[bytes], abandoned: Callable[[], bool]) -> int:
        """Popen's return code of mpirun, to which signals go meanwhile; those received just before go there too.

        It is killed when it is found `abandoned`.
        """
        self._process = process
        if self.received and self.passed is None:
            self._pass_on(self.received[-1], process)
        while True:
            try:
                returncode = process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if time.monotonic() > self._kill_at or abandoned():
                    process.kill()
                continue
            self._process = None
            return returncode

    def pause(self, seconds: float) -> bool:
        """Sleep, and say whether a signal has been received by the end of it; one ends the sleep."""
        deadline = time.monotonic() + seconds
        while not self.received and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(self.received)


@contextmanager
def handled_signals(kind: Kind, saves: bool) -> Iterator[Signals]:
    """Within the block, signals are handled by the yielded object."""
    signals = Signals(kind, saves)
    previous = {number: signal.signal(number, signals.handle) for number in HANDLED}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
