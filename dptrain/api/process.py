"""How functions of the API run in the process of a program: one BLAS thread, and aborting all ranks after an error."""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType

import threadpoolctl

from dptrain.errors import UNFORESEEN, DptrainError, PeerError, UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.mpi import connect
from dptrain.system.shared_context import SharedContext
from dptrain.system.streams import write_to_stderr


@contextmanager
def _limit() -> Iterator[None]:
    """One BLAS thread for the process.

    Since version 3.8, threadpoolctl lets only one thread change OpenBLAS's limit, and ignores all others.
    """
    _release_control()
    limits = threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    yield
    _release_control()
    limits.restore_original_limits()
    _release_control()


def _release_control() -> None:
    """Let any thread change OpenBLAS's limit."""
    controller = getattr(threadpoolctl, "OpenBLASController", None)
    if controller is not None and hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


# A command up to the end of its clause; or a flag, with "=" or with a blank before its value. Paths may have dashes.
_COMMAND = r"\b(?:dptrain|mpirun) (?:[a-z]|--).*?(?=[;,:)]|\.\s|\.?$)"
_FLAG = re.compile(_COMMAND + r"|(?<![\w./-])--([a-z][a-z0-9-]*)(=| (?=[0-9A-Z'\"]))?")


def as_arguments(text: str) -> str:
    """A message in which flags are written like arguments of functions: batch_size=16 for --batch-size 16."""

    def argument(found: re.Match[str]) -> str:
        flag, value = found.groups()
        return found[0] if flag is None else flag.replace("-", "_") + ("=" if value else "")

    return _FLAG.sub(argument, text)


@cache  # once
def _shorten_peer_errors() -> None:
    """Let a program that does not catch a PeerError print one line: another rank prints the error."""
    earlier = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, PeerError):
            write_to_stderr("dptrain: this rank ends, because another rank has failed")
        else:
            earlier(kind, error, trace)

    sys.excepthook = hook


_calls = threading.Lock()  # held by the call that runs on several ranks
one_blas_thread = SharedContext(_limit)


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
            _shorten_peer_errors()
        if isinstance(error, DptrainError):
            error.args = (as_arguments(str(error)),)
        if several and not (isinstance(error, DptrainError) and error.agreed):
            traceback.print_exc()
            communicator.abort(error.status if isinstance(error, DptrainError) else UNFORESEEN)
        raise
    finally:
        if several:
            _calls.release()
