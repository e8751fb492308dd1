"""Ending on a signal without leaving half a data set: signals are exceptions, and wait where these would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dptrain.system.signals import handled


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
