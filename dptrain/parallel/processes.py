"""Shards side by side on forked workers: how one process uses all cores.

Two threads of one process wait for Python's lock (the GIL) between NumPy's calls: on 2 cores they trained at 1.2 to
1.7 times the speed of one, two processes at 1.7 to 1.9 (measured). Workers are forked once, when data and network are
in place, and share them with their parent; what changes from step to step passes through memory that all share.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace, out_of_memory
from dptrain.errors import DptrainError, HelperLostError, LimitError
from dptrain.health.interruption import leave_signals_to_parent
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import Result, ShardPool, ShardWork
from dptrain.parallel.threads import ShardThreads
from dptrain.system.signals import handled

# Seconds to look for a message before sleeping. What lies between two calls of a training step takes some 200 us, and
# to wake a process that sleeps 50 to 100 us more.
PATIENCE = 1e-3

PR_SET_PDEATHSIG = 1  # linux/prctl.h

FORK = multiprocessing.get_context("fork")


def make_pool(size: int, works: Sequence[ShardWork[Any]], communicator: Communicator) -> ShardPool:
    """Who computes `works`: processes; threads where MPI runs, which on some networks does not survive a fork.

    Threads too in a worker of someone's multiprocessing.Pool, which may not have children.
    """
    threads = size == 1 or communicator.uses_mpi or multiprocessing.current_process().daemon
    return ShardThreads(size) if threads else ShardProcesses(size, works)


def shared_zeros(length: int) -> Array:
    """A float32 vector of zeros that a process shares with those it forks later; LimitError without memory."""
    size = max(1, length) * 4
    try:
        return np.frombuffer(mmap.mmap(-1, size), np.float32, length)
    except (OSError, OverflowError) as error:
        raise out_of_memory(size, "parameters or gradients", error) from None


@dataclass(frozen=True)
class Failure:
    """An exception of one shard's part, and its traceback."""

    error: BaseException
    traceback: str


@dataclass(frozen=True)
class Helper:
    """A forked process, and the parent's end of the pipe to it."""

    process: BaseProcess
    connection: Connection


class ShardProcesses(ShardPool):
    """The caller and `size` - 1 processes forked from it; each computes a contiguous block of a call's shards.

    Only the works named here can be computed, as they are now.
    """

    def __init__(self, size: int, works: Sequence[ShardWork[Any]]) -> None:
        self.size = size
        self._works = list(works)
        self._workspace = Workspace()
        self._helpers: list[Helper] = []
        try:
            with _signals_held_back():
                for _ in range(1, size):
                    self._helpers.append(self._fork())
        except BaseException as error:  # a signal's, too
            started = len(self._helpers)
            self.close()
            if not isinstance(error, OSError):
                raise
            raise LimitError(
                f"only {started} of {size - 1} forked workers could be started ({error.strerror}); use fewer --threads "
                "(1 needs none), or raise the limits of processes, memory and open files (ulimit -u, -v, -n)"
            ) from None

    def _fork(self) -> Helper:
        ours, theirs = FORK.Pipe()
        inherited = [helper.connection for helper in self._helpers] + [ours]
        of_main_thread = threading.current_thread() is threading.main_thread()
        process = FORK.Process(target=_serve, args=(theirs, self._works, inherited, of_main_thread), daemon=True)
        process.start()
        theirs.close()
        return Helper(process, ours)

    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        shards = list(shards)
        if not shards:
            return []
        placement = Placement(len(shards), min(self.size, len(shards)))
        own, *others = ([shards[position] for position in placement.shards_of(r)] for r in range(placement.ranks))
        busy = list(zip(self._helpers, others, strict=False))
        number = self._number(work)
        for helper, block in busy:
            with contextlib.suppress(BrokenPipeError):  # it is gone; `_answer` says so
                helper.connection.send((number, block, arguments))
        found = _compute(work, own, arguments, self._workspace)
        theirs = [part for helper, block in busy for part in _answer(helper, block)]
        for part in found:
            if isinstance(part, Failure):
                raise part.error
        for part in theirs:
            if isinstance(part, Failure):
                raise part.error from (None if isinstance(part.error, DptrainError) else HelperError(part.traceback))
        return found + theirs

    def _number(self, work: ShardWork[Any]) -> int:
        """By which the helpers know a work."""
        for number, known in enumerate(self._works):
            if known is work:
                return number
        raise ValueError(f"{work!r} was not there when the helpers were forked, so they do not know it")

    def close(self) -> None:
        for helper in self._helpers:
            helper.connection.close()
            helper.process.kill()  # at once: it keeps nothing that could be lost
            helper.process.join()
        self._helpers = []


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """A signal that asks for the end, such as Ctrl-C, arrives after the block: within a fork Python would discard it.

    By handlers, not the signal mask, as another thread, such as a library's own, may receive it.
    """
    if threading.current_thread() is not threading.main_thread():  # whose handlers these are
        yield
        return
    before = {number: handler for number in handled() if (handler := signal.getsignal(number)) is not None}
    came: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, handler in before.items():
            if number in came and callable(handler):
                handler(number, None)  # not raised again: whoever counts signals has seen it
            elif number in came:
                signal.raise_signal(number)


class HelperError(Exception):
    """The traceback of an exception that was raised in another process."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def _compute(
    work: ShardWork[Any],
    shards: list[int],
    arguments: Any,
    workspace: Workspace,
    in_vain: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """A result or Failure for each shard; stops when nobody waits for them any more."""
    found: list[Any] = []
    try:
        prepared = work.prepare(*arguments)
    except (Exception, SystemExit) as error:  # a user's layer may call sys.exit()
        return [Failure(error, traceback.format_exc())]
    for shard in shards:
        if in_vain():
            break
        try:
            found.append(work.compute(shard, prepared, workspace))
        except (Exception, SystemExit) as error:
            found.append(Failure(error, traceback.format_exc()))
    return found


def _receive(connection: Connection) -> bytes:
    """The next message, pickled; looks for it for a while before it sleeps, as MPI does.

    EOFError or OSError when the other end is closed.
    """
    end = time.perf_counter() + PATIENCE
    while not connection.poll() and time.perf_counter() < end:
        pass
    return connection.recv_bytes()


def _answer(helper: Helper, shards: list[int]) -> list[Any]:
    """What a helper has computed; DptrainError when it has died."""
    try:
        message = _receive(helper.connection)
    except (EOFError, OSError):
        helper.process.kill()
        helper.process.join()
        raise HelperLostError(
            f"process {helper.process.pid}, which computed shards {shards[0]} to {shards[-1]}, "
            f"{_end(helper.process.exitcode)}. Start the same command again (with --run-dir, training resumes from its "
            "last checkpoint)"
        ) from None
    found: list[Any] = pickle.loads(message)
    return found


def _end(status: int | None) -> str:
    """How a process ended, by multiprocessing's exit code of it."""
    if status is None or status >= 0:
        return "is gone" if status is None else f"ended with status {status}"
    with contextlib.suppress(ValueError):  # a number without a name
        number = signal.Signals(-status)
        hint = "; if memory ran out, use fewer --threads" if number in (signal.SIGKILL, signal.SIGBUS) else ""
        return f"was ended by {number.name}{hint}"
    return f"was ended by signal {-status}"


def _portable(failure: Failure) -> Failure:
    """Itself, or an exception with the same last line, if its exception cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        return Failure(RuntimeError(failure.traceback.strip().rpartition("\n")[2]), failure.traceback)
    return failure


def _die_with_parent() -> None:
    """Have the kernel end this process after its parent, even if it is stopped or in an endless layer of a user's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _serve(
    connection: Connection, works: Sequence[ShardWork[Any]], inherited: Sequence[Connection], of_main_thread: bool
) -> None:
    """A helper's life: compute what is asked for until the parent closes the pipe, or is no more."""
    leave_signals_to_parent()
    if of_main_thread:  # what the kernel calls a parent is the thread that has forked
        _die_with_parent()
    for other in inherited:
        other.close()  # as long as they were open here, nobody would notice the parent's death
    workspace = Workspace()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, shards, arguments = pickle.loads(_receive(connection))
            # The parent sends nothing before it has its answer: what can be received is its end.
            found = _compute(works[number], shards, arguments, workspace, in_vain=connection.poll)
            for stream in (sys.stdout, sys.stderr):  # what a user's layer has printed; nothing else flushes it
                with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
                    stream.flush()
            connection.send([_portable(part) if isinstance(part, Failure) else part for part in found])
    os._exit(0)  # the parent's, which were copied, are not this process's to clean up
