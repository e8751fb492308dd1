"""Signals that ask a run to end: those of `dptrain.system.signals.ENDING`, such as SIGTERM and Ctrl-C.

After the first one the step is completed, and all ranks save and end together. A second one, if it is not part of the
same request, ends all ranks at once. A thread reads the signals as they arrive, because Python runs handlers only
between two instructions of the main thread, which may wait for other ranks within MPI without end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from dptrain.errors import PREEMPTED, DptrainError
from dptrain.system.signals import ENDING, SAME_REQUEST, handled, ignore_at_exit

END = b"\0"  # no signal has this number: the thread ends


class AskedToEndError(KeyboardInterrupt):
    """A signal arrived before the first step; the text is its name. Code that handles errors does not catch this."""


class Interruption:
    """Whether a signal or the program has asked for the end. This base class handles no signals.

    A run that `finish` ends is complete: it is evaluated, saved and reported. A signal ends it as soon as it is saved.
    """

    signal_name: str | None = None
    finish = False

    def begin_deferring(self) -> None:
        """From now on a signal only sets `signal_name`; before, it raises AskedToEndError in the main thread."""


NEVER = Interruption()


class SignalInterruption(Interruption):
    """Handles the signals of this process within a `with` block of the main thread; ignored signals stay ignored.

    A second request calls `end` with an exit status, in a thread.
    """

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end
        self._raises = True
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._read, name="signals", daemon=True)
        self._thread.start()  # first: the system may refuse a thread
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._handlers_before: dict[int, Any] = {number: signal.signal(number, self._handle) for number in handled()}

    def begin_deferring(self) -> None:
        self._raises = False
        if self.signal_name is not None:  # the user's code has caught the exception
            raise AskedToEndError(self.signal_name)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._raises:
            self._raises = False  # once: another exception would interrupt the cleanup
            self.signal_name = signal.Signals(number).name
            raise AskedToEndError(self.signal_name)

    def _read(self) -> None:
        first: float | None = None
        while END not in (numbers := os.read(self._reading, 64)):
            now = time.monotonic()
            for number in filter(ENDING.__contains__, numbers):
                if first is None:
                    first, self.signal_name = now, signal.Signals(number).name
                elif now - first > SAME_REQUEST:
                    self._end(128 + number)

    def __enter__(self) -> Interruption:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Restore the earlier handlers, unless a signal to this rank or to another has ended the block.

        Then they stay until the program ends: more signals of the same request may follow, and must not kill a process
        that has saved its state and will report its status.
        """
        if self.signal_name is not None or (isinstance(error, DptrainError) and error.status == PREEMPTED):
            ignore_at_exit()
        else:
            self.close()

    def close(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._writing, END)
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)
