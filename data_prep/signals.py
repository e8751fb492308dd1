"""Ending on a signal without leaving half a data set: signals become exceptions, at places where these arrive."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_by_exception() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit (status 128 + n), as SIGINT raises KeyboardInterrupt already.

    As an exception, a signal passes the code that removes half-written folders.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: sys.exit(128 + caught))


@contextmanager
def signals_held() -> Iterator[None]:
    """Put off SIGINT, SIGTERM and SIGHUP to the end of the block.

    For short calls of h5py: an exception that a handler raises below libhdf5, in a callback or while an
    object is freed, is lost, and the program would go on as if no signal had come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda caught, _frame: arrived.append(caught)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
