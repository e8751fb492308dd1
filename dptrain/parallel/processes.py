"""Shards side by side on forked workers: how one process uses all cores.

Two threads of one process wait for Python's lock (the GIL) between NumPy's calls: on 2 cores they trained at 1.2 to
1.7 times the speed of one, two processes at 1.7 to 1.9 (measured). Workers are forked once, when data and network are
loaded, and share them with their parent. Parameters and gradients are in memory that all share.
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace, out_of_memory
from dptrain.errors import DptrainError, LimitError, WorkerLostError
from dptrain.health.interruption import leave_signals_to_parent
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import Result, ShardPool, ShardWork
from dptrain.parallel.threads import ShardThreads
from dptrain.system.signals import delayed_signals

# Seconds to poll for a message before sleeping. Between two calls of a training step pass some 200 us, and waking a
# process that sleeps takes 50 to 100 us more.
PATIENCE = 1e-3

PR_SET_PDEATHSIG = 1  # linux/prctl.h

FORK = multiprocessing.get_context("fork")


def make_pool(size: int, works: Sequence[ShardWork[Any]], communicator: Communicator) -> ShardPool:
    """The pool that computes `works`: processes; threads under MPI, which on some networks does not survive a fork.

    Threads too in a worker of a multiprocessing.Pool, which may not have children.
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
class Worker:
    """A forked worker, and the parent's end of the pipe to it."""

    process: BaseProcess
    connection: Connection


class ShardProcesses(ShardPool):
    """The caller and `size` - 1 forked workers; each computes a contiguous block of a call's shards.

    Only these `works` can be computed, as they are when the workers are forked.
    """

    def __init__(self, size: int, works: Sequence[ShardWork[Any]]) -> None:
        self.size = size
        self._works = list(works)
        self._workspace = Workspace()
        self._workers: list[Worker] = []
        try:
            with delayed_signals():
                for _ in range(1, size):
                    self._workers.append(self._fork())
        except BaseException as error:  # a signal's, too
            started = len(self._workers)
            self.close()
            if not isinstance(error, OSError):
                raise
            raise LimitError(
                f"only {started} of {size - 1} forked workers could be started ({error.strerror}); use fewer --threads "
                "(1 needs none), or raise the limits of processes, memory and open files (ulimit -u, -v, -n)"
            ) from None

    def _fork(self) -> Worker:
        ours, theirs = FORK.Pipe()
        inherited = [worker.connection for worker in self._workers] + [ours]
        of_main_thread = threading.current_thread() is threading.main_thread()
        process = FORK.Process(target=_serve, args=(theirs, self._works, inherited, of_main_thread), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours)

    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        shards = list(shards)
        if not shards:
            return []
        placement = Placement(len(shards), min(self.size, len(shards)))
        own, *others = ([shards[position] for position in placement.shards_of(r)] for r in range(placement.ranks))
        busy = list(zip(self._workers, others, strict=False))
        number = self._number(work)
        for worker, block in busy:
            with contextlib.suppress(BrokenPipeError):  # it has died; `_answer` reports it
                worker.connection.send((number, block, arguments))
        found = _compute(work, own, arguments, self._workspace)
        theirs = [part for worker, block in busy for part in _answer(worker, block)]
        for part in found:
            if isinstance(part, Failure):
                raise part.error
        for part in theirs:
            if isinstance(part, Failure):
                raise part.error from (None if isinstance(part.error, DptrainError) else WorkerError(part.traceback))
        return found + theirs

    def _number(self, work: ShardWork[Any]) -> int:
        """The number of a work, by which the workers know it."""
        for number, known in enumerate(self._works):
            if known is work:
                return number
        raise ValueError(f"{work!r} did not exist when the workers were forked, so they do not know it")

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()  # at once: it keeps nothing that could be lost
            worker.process.join()
        self._workers = []


class WorkerError(Exception):
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
    """A result or Failure for each shard; stops when `in_vain` says that nobody waits for them."""
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
    """The next message, pickled; polls for a while before it sleeps, as MPI does.

    EOFError or OSError when the other end is closed.
    """
    end = time.perf_counter() + PATIENCE
    while not connection.poll() and time.perf_counter() < end:
        pass
    return connection.recv_bytes()


def _answer(worker: Worker, shards: list[int]) -> list[Any]:
    """The results of a worker; WorkerLostError when it has died."""
    try:
        message = _receive(worker.connection)
    except (EOFError, OSError):
        worker.process.kill()
        worker.process.join()
        raise WorkerLostError(
            f"forked worker {worker.process.pid}, which computed shards {shards[0]} to {shards[-1]}, "
            f"{_end(worker.process.exitcode)}. Start the same command again (with --run-dir, training resumes from its "
            "last checkpoint)"
        ) from None
    found: list[Any] = pickle.loads(message)
    return found


def _end(status: int | None) -> str:
    """How a process ended, by its exit code from multiprocessing."""
    if status is None or status >= 0:
        return "is gone" if status is None else f"ended with status {status}"
    with contextlib.suppress(ValueError):  # a number without a name
        number = signal.Signals(-status)
        hint = "; if memory ran out, use fewer --threads" if number in (signal.SIGKILL, signal.SIGBUS) else ""
        return f"was ended by {number.name}{hint}"
    return f"was ended by signal {-status}"


def _portable(failure: Failure) -> Failure:
    """The failure itself, or one with the same last line if its exception cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        return Failure(RuntimeError(failure.traceback.strip().rpartition("\n")[2]), failure.traceback)
    return failure


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent has died, even if it is stopped or in an endless loop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _serve(
    connection: Connection, works: Sequence[ShardWork[Any]], inherited: Sequence[Connection], of_main_thread: bool
) -> None:
    """The main function of a worker: compute what the parent sends, until the pipe is closed."""
    leave_signals_to_parent()
    if of_main_thread:  # for the kernel, the parent is the thread that has forked
        _die_with_parent()
    for other in inherited:
        other.close()  # else the other workers would not notice the parent's death
    workspace = Workspace()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, shards, arguments = pickle.loads(_receive(connection))
            # The parent sends nothing before it has the answer: if there is something to receive, it has ended.
            found = _compute(works[number], shards, arguments, workspace, in_vain=connection.poll)
            for stream in (sys.stdout, sys.stderr):  # text that a user's layer has printed; nothing else flushes it
                with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
                    stream.flush()
            connection.send([_portable(part) if isinstance(part, Failure) else part for part in found])
    os._exit(0)  # without the cleanup of the parent's objects, of which this process has copies
