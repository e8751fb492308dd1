"""How functions of the API run in the process of a program: one BLAS thread, and aborting all ranks after an error."""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import threadpoolctl

from dptrain.errors import UNFORESEEN, DptrainError, PeerError, UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.mpi import connect


class _Limit:
    """The limit of one BLAS thread, which belongs to the process: the first thread sets it, the last one ends it.

    Since version 3.8, threadpoolctl lets only one thread change OpenBLAS's limit, and ignores all others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                _release_control()
                self._limits = threadpoolctl.threadpool_limits(limits=1, user_api="blas")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                _release_control()
                self._limits.restore_original_limits()
                _release_control()


def _release_control() -> None:
    """Let any thread change OpenBLAS's limit."""
    controller = getattr(threadpoolctl, "OpenBLASController", None)
    if controller is not None and hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


# A command up to the end of its clause; or a flag, with "=" or with a blank before its value.
_FLAG = re.compile(r"\b(?:dptrain|mpirun) (?:[a-z]|--)[^;,.:)]*|--([a-z][a-z0-9-]*)(=| (?=[0-9A-Z'\"]))?")


def as_arguments(text: str) -> str:
    """A message in which flags are written like arguments of functions: batch_size=16 for --batch-size 16."""

    def argument(found: re.Match[str]) -> str:
        flag, value = found.groups()
        return found[0] if flag is None else flag.replace("-", "_") + ("=" if value else "")

    return _FLAG.sub(argument, text)


def _print_no_peer_errors() -> None:
    """Let the program end without a traceback if nothing catches a PeerError: another rank prints the reason."""
    earlier = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, PeerError):
            earlier(kind, error, trace)

    sys.excepthook = hook


_calls = threading.Lock()  # held by the call that runs on several ranks
one_blas_thread = _Limit()  # `with one_blas_thread:` in any number of threads, and within itself


@contextmanager
def all_ranks() -> Iterator[tuple[Communicator, str]]:
    """The communicator of a program, and a line that describes it: one process, or the ranks of mpirun.

    An error on a single rank aborts all ranks; otherwise they would wait for it forever. The texts of errors get
    arguments for flags. UsageError within another call on several ranks, as in a callback: their messages would mix.
    """
    communicator, connection = connect()
    several = communicator.size > 1
    if several and not _calls.acquire(blocking=False):
        raise UsageError("another function of dptrain runs on all ranks: call this after it has returned, on all ranks")
    try:
        with one_blas_thread:
            yield communicator, connection
    except BaseException as error:
        if isinstance(error, PeerError):
            _print_no_peer_errors()
        if isinstance(error, DptrainError):
            error.args = (as_arguments(str(error)),)
        if several and not (isinstance(error, DptrainError) and error.agreed):
            traceback.print_exc()
            communicator.abort(error.status if isinstance(error, DptrainError) else UNFORESEEN)
        raise
    finally:
        if several:
            _calls.release()
