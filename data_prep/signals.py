"""Ending on a signal without leaving half a data set."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dptrain.system.signals import handled


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay signals that announce an end to the end of the block.

    For short calls of h5py: an exception that a signal handler raises within libhdf5 is lost.
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
