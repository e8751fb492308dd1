"""Ending on a signal without leaving half a data set: signals become exceptions, at places where these arrive."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dptrain.system.signals import SAME_REQUEST, handled, ignore_at_exit


class EndedBySignal(KeyboardInterrupt):
    """A signal asked the program to end; the text is the signal's name. `status` is the exit status, 128 + n."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def end_by_exception() -> None:
    """Let every signal that announces an end raise EndedBySignal; those that are ignored stay ignored.

    As an exception, a signal passes the code that removes half-written folders. Further signals of the same request
    (`dptrain.system.signals.SAME_REQUEST`) do not disturb that code.
    """
    first: float | None = None

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None or now - first > SAME_REQUEST:
            if first is None:
                first = now
                ignore_at_exit()
            raise EndedBySignal(number)

    for number in handled():
        signal.signal(number, end)


@contextmanager
def signals_held() -> Iterator[None]:
    """Put off signals that announce an end to the end of the block.

    For short calls of h5py: an exception that a handler raises below libhdf5, in a callback or while an
    object is freed, is lost, and the program would continue as if no signal had come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda caught, _frame: arrived.append(caught)) for number in handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if arrived:
            signal.raise_signal(arrived[0])
