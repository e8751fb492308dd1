"""Work that is done for each shard alone, and pools that do it for several shards at a time.

Forked workers let one process use all cores. Two threads of one process wait for Python's lock (the GIL) between
NumPy's calls: on 2 cores they trained at 1.2 to 1.7 times the speed of one, two processes at 1.7 to 1.9 (measured).
Workers are forked once, when data and network are loaded, and share them with their parent. Under MPI, which on some
networks does not survive a fork, there are threads instead.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from dptrain.arrays.memory import Array, Workspace, out_of_memory
from dptrain.errors import WorkerLostError
from dptrain.health.recorder import NO_RECORDER, Recorder, Span
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.system.cgroups import ROOT, cpu_limits
from dptrain.system.signals import delayed_signals, end_with_parent, leave_signals_to_parent

Result = TypeVar("Result")

# Seconds after which a thread that waits for the GIL asks for it. With Python's 5 ms it is woken whenever the GIL is
# released, often to find it taken again, and each wake costs some 50 us. Threads here hold it for some microseconds at
# a time; asking early reduced voluntary context switches from 10 to 4 a microbatch (measured).
SWITCH_INTERVAL = 20e-6

# Seconds to poll for a message before sleeping. Between two calls of a training step pass some 200 us, and waking a
# process that sleeps takes 50 to 100 us more.
PATIENCE = 1e-3

FORK = multiprocessing.get_context("fork")
Answer = tuple[list[Any], BaseException | None]  # the results of a block of shards up to the first error, and the error


class ShardWork(ABC, Generic[Result]):
    """A task with one independent part for each shard.

    Forked workers have this object as it was when the pool was made: pass changes as arguments or in `shared_zeros`.
    """

    def prepare(self, *arguments: Any) -> Any:
        """Make what all parts need from the arguments of `ShardPool.map`; once for each call and process."""
        return arguments

    @abstractmethod
    def compute(self, shard: int, prepared: Any, workspace: Workspace) -> Result:
        """Compute one shard's part, with a workspace that no other part uses at the same time."""


class ShardPool(ABC):
    """Computes the parts of a task, `size` at the same time. The caller computes too."""

    size: int

    @abstractmethod
    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        """The results in the order of the shards; at the end, the error of the first shard that failed is raised."""

    @abstractmethod
    def close(self) -> None:
        """End all threads or processes but the caller."""


class ShardThreads(ShardPool):
    """Computes on `size` threads, each with its own workspace. NumPy releases the GIL while it computes.

    Each thread takes the next shard that is left. The caller waits for the others once: a wake costs some 50 us.
    """

    def __init__(self, size: int, recorder: Recorder = NO_RECORDER) -> None:
        self.size, self._recorder = size, recorder
        self._workspaces: dict[int, Workspace] = defaultdict(Workspace)  # by thread
        self._executor = ThreadPoolExecutor(max(1, size - 1), "shard")
        if size > 1:
            sys.setswitchinterval(SWITCH_INTERVAL)

    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        with self._recorder.span("prepare", "prepare"):
            prepared = work.prepare(*arguments)
        waiting = deque(enumerate(shards))
        results: dict[int, Result] = {}
        errors: dict[int, Exception] = {}

        def compute() -> None:
            workspace = self._workspaces[threading.get_ident()]
            with contextlib.suppress(IndexError):  # no shard is left
                while True:
                    position, shard = waiting.popleft()
                    try:
                        with self._recorder.span(f"shard {shard}", "shard"):
                            results[position] = work.compute(shard, prepared, workspace)
                    except Exception as error:
                        errors[position] = error

        others = [self._executor.submit(compute) for _ in range(self.size - 1)]
        compute()
        with self._recorder.span("waiting (workers)", "waiting"):
            for other in others:
                other.result()
        if errors:
            raise errors[min(errors)]
        return [results[position] for position in sorted(results)]

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


class Worker(NamedTuple):
    """A forked worker, and the parent's end of the pipe to it."""

    process: BaseProcess
    connection: Connection


class ShardProcesses(ShardPool):
    """The caller and `size` - 1 forked workers; each computes a contiguous block of a call's shards.

    Only these `works` can be computed, as they are when the workers are forked. Calls with the same shards compute each
    of them in the same process.
    """

    def __init__(self, size: int, works: Sequence[ShardWork[Any]], recorder: Recorder = NO_RECORDER) -> None:
        self.size, self._recorder = size, recorder
        self._works = list(works)
        self._workspace = Workspace()
        self._workers: list[Worker] = []
        try:
            with delayed_signals():
                for _ in range(1, size):
                    self._workers.append(self._fork())
        except BaseException:  # a signal's, or an OSError: too many processes
            self.close()
            raise
        recorder.collect_from(self._recorded)

    def _fork(self) -> Worker:
        ours, theirs = FORK.Pipe()
        inherited = [worker.connection for worker in self._workers] + [ours]
        in_main_thread = threading.current_thread() is threading.main_thread()
        arguments = (theirs, self._works, inherited, in_main_thread, self._recorder)
        process = FORK.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return Worker(process, ours)

    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        shards = list(shards)
        if not shards:
            return []
        placement = Placement(len(shards), min(self.size, len(shards)))
        first, *others = ([shards[position] for position in placement.shards_of(r)] for r in range(placement.ranks))
        busy = list(zip(self._workers, others, strict=False))
        number = self._works.index(work)
        for worker, block in busy:
            with contextlib.suppress(BrokenPipeError):  # it has died; `_answer` reports it
                worker.connection.send((number, block, arguments, self._recorder.recording))
        answers: list[Answer] = [_compute(work, first, arguments, self._workspace, self._recorder)]
        with self._recorder.span("waiting (workers)", "waiting"):
            answers += [_answer(worker, block) for worker, block in busy]
        for _, error in answers:
            if error is not None:
                raise error
        return [result for results, _ in answers for result in results]

    def _recorded(self) -> list[Span]:
        """What the workers have recorded. They keep it until they are asked: with each answer it would cost time."""
        found: list[Span] = []
        for number, worker in enumerate(self._workers, 1):
            with contextlib.suppress(OSError, EOFError):  # it has died; the next call reports it
                worker.connection.send((0, [], (), False))
                found += [span._replace(track=f"worker {number}") for span in _receive(worker.connection)]
        return found

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()  # at once: it keeps nothing that could be lost
            worker.process.join()
        self._workers = []


def _compute(
    work: ShardWork[Any], shards: list[int], arguments: Any, workspace: Workspace, recorder: Recorder
) -> Answer:
    results: list[Any] = []
    try:
        with recorder.span("prepare", "prepare"):
            prepared = work.prepare(*arguments)
        for shard in shards:
            with recorder.span(f"shard {shard}", "shard"):
                results.append(work.compute(shard, prepared, workspace))
    except (Exception, SystemExit) as error:  # a user's layer may call sys.exit()
        return results, error
    return results, None


def _receive(connection: Connection) -> Any:
    """The next message; polls for a while before it sleeps, as MPI does. EOFError or OSError without a sender."""
    end = time.perf_counter() + PATIENCE
    while not connection.poll() and time.perf_counter() < end:
        pass
    return connection.recv()


def _answer(worker: Worker, shards: list[int]) -> Answer:
    """The answer of a worker; WorkerLostError when it has died."""
    try:
        answer: Answer = _receive(worker.connection)
    except (EOFError, OSError):
        worker.process.kill()
        worker.process.join()
        code = worker.process.exitcode  # None where SIGCHLD is ignored
        reason = signal.strsignal(-code) if code is not None and code < 0 else f"exit status {code}"
        raise WorkerLostError(
            f"forked worker {worker.process.pid}, which computed shards {shards[0]} to {shards[-1]}, died ({reason}). "
            "Start the same command again (with --run-dir, training resumes from its last checkpoint); if memory ran "
            "out, use fewer --threads"
        ) from None
    return answer


def _portable(error: BaseException) -> BaseException:
    """The exception with its traceback as a note; a RuntimeError with the same text if it cannot be pickled."""
    lines = traceback.format_exception(error)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(lines[-1].strip())
    error.add_note(f"In a forked worker:\n{''.join(lines).rstrip()}")
    return error


def _serve(
    connection: Connection,
    works: Sequence[ShardWork[Any]],
    inherited: Sequence[Connection],
    in_main_thread: bool,
    recorder: Recorder,
) -> None:
    """The main function of a worker: compute what the parent sends, until the pipe is closed."""
    leave_signals_to_parent()
    if in_main_thread:
        end_with_parent()
    for other in inherited:
        other.close()  # else the other workers would not notice the parent's death
    workspace = Workspace()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, shards, arguments, recorder.recording = _receive(connection)
            if not shards:
                connection.send(recorder.take())
                continue
            results, error = _compute(works[number], shards, arguments, workspace, recorder)
            for stream in (sys.stdout, sys.stderr):  # text that a user's layer has printed; nothing else flushes it
                with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
                    stream.flush()
            connection.send((results, None if error is None else _portable(error)))
    os._exit(0)  # without the cleanup of the parent's objects, of which this process has copies


def make_pool(size: int, works: Sequence[ShardWork[Any]], communicator: Communicator) -> ShardPool:
    """The pool that computes `works`. A worker of a multiprocessing.Pool may not have children: it uses threads."""
    threads = size == 1 or communicator.uses_mpi or multiprocessing.current_process().daemon
    recorder = communicator.recorder
    return ShardThreads(size, recorder) if threads else ShardProcesses(size, works, recorder)


def shared_zeros(length: int) -> Array:
    """A float32 vector of zeros that a process shares with those it forks later; LimitError without memory."""
    size = max(1, length) * 4
    try:
        return np.frombuffer(mmap.mmap(-1, size), np.float32, length)
    except (OSError, OverflowError) as error:
        raise out_of_memory(size, "parameters or gradients", error) from None


def fair_threads(communicator: Communicator, root: Path = ROOT) -> int:
    """This rank's share of the host's cores, at least 1."""
    return max(1, int(core_share(communicator, root) + 1e-9))  # three times a third of a core is one core


def core_share(communicator: Communicator, root: Path = ROOT) -> float:
    """This rank's share of the host's cores.

    Each core is divided among the ranks that may run on it, and the CPU quota of a control group among the ranks in it
    (`dptrain.system.cgroups`, below `root`).
    """
    host, cores, quotas = socket.gethostname(), os.sched_getaffinity(0), cpu_limits(root)
    everyone = communicator.allgather((host, cores, quotas))
    neighbours = [(others, limited) for name, others, limited in everyone if name == host]
    share = sum(1 / sum(core in others for others, _ in neighbours) for core in cores)
    for group, quota in quotas.items():
        share = min(share, quota / sum(group in limited for _, limited in neighbours))
    return share
