"""Signals that ask a run to end: SIGTERM, SIGINT (Ctrl-C) and SIGUSR1.

The first one is kept until the step is made, and all ranks then save and end together; a second one ends all
at once. A thread reads the signals as they arrive, for Python runs handlers only between two instructions
of the main thread, which may be waiting for other ranks within MPI for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# Seconds in which another signal is taken for the same request: `timeout` and some MPIs signal a process and its
# group, so that it arrives twice.
SAME_REQUEST = 0.25

END = b"\0"  # no signal has this number: nobody reads any more


class AskedToEndError(KeyboardInterrupt):
    """A signal has asked for the end, and nothing is saved yet; the text is the signal's name.

    Not an Exception: no code for errors on the way takes it for one.
    """


class Interruption:
    """Whether a signal has asked for the end. This class itself is for whoever takes no signals."""

    signal_name: str | None = None

    def begin_deferring(self) -> None:
        """From now on a signal waits until it is asked for; before, it raises AskedToEndError in the main thread."""


NEVER = Interruption()


class SignalInterruption(Interruption):
    """Takes the process's signals from its making to `close`; to be made in the main thread."""

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end
        self._deferring = False
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._handlers_before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in ENDING}
        self._thread = threading.Thread(target=self._read, name="signals", daemon=True)
        self._thread.start()

    def begin_deferring(self) -> None:
        self._deferring = True
        if self.signal_name is not None:  # it came as an exception that somebody's code has swallowed
            raise AskedToEndError(self.signal_name)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._deferring:
            raise AskedToEndError(signal.Signals(number).name)

    def _read(self) -> None:
        first: float | None = None
        while END not in (numbers := os.read(self._reading, 64)):
            now = time.monotonic()
            for number in filter(ENDING.__contains__, numbers):
                if first is None:
                    first, self.signal_name = now, signal.Signals(number).name
                elif now - first > SAME_REQUEST:
                    self._end(128 + number)

    def close(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._writing, END)
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)


@contextlib.contextmanager
def signals_taken(end: Callable[[int], None]) -> Iterator[Interruption]:
    """An interruption by this process's signals, within the block; a second one calls `end`, in a thread."""
    interruption = SignalInterruption(end)
    try:
        yield interruption
    finally:
        interruption.close()


def leave_signals_to_parent() -> None:
    """For a forked helper: a terminal or a scheduler signals all processes of a job, and the parent decides."""
    inherited = signal.set_wakeup_fd(-1)
    if inherited != -1:
        os.close(inherited)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
