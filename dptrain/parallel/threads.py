"""The threads of a rank: they run its shards side by side, each with a workspace of its own."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TypeVar

from dptrain.nn.workspace import Workspace
from dptrain.parallel.communicator import Communicator

Result = TypeVar("Result")

# Seconds after which a thread that waits for the GIL asks for it. With Python's 5 ms it is woken whenever the GIL is
# let go, often to find it taken again, and each wake costs some 50 us. Threads here hold it for some microseconds at a
# time; asking early took voluntary context switches a microbatch from 10 to 4 (measured).
SWITCH_INTERVAL = 20e-6


class ShardPool:
    """Calls a function for every shard, on `threads` threads. NumPy leaves the GIL while it computes.

    Which thread takes which shard is left to chance: a shard's result does not depend on it. The caller is one of
    the threads, and waits for the others once: each wake of a thread costs some 50 us and the GIL.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._workspaces: dict[int, Workspace] = {}  # by thread
        self._helpers = ThreadPoolExecutor(threads - 1, "shard") if threads > 1 else None
        if threads > 1:
            sys.setswitchinterval(SWITCH_INTERVAL)

    def map(self, function: Callable[[int, Workspace], Result], shards: Iterable[int]) -> list[Result]:
        """Results of function(shard, workspace) in the order of the shards; the first error is raised."""
        waiting = deque(enumerate(shards))
        results: dict[int, Result] = {}
        errors: dict[int, Exception] = {}

        def work() -> None:
            while waiting:
                try:
                    position, shard = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    results[position] = function(shard, self._workspace())
                except Exception as error:
                    errors[position] = error

        helpers = [self._helpers.submit(work) for _ in range(self.threads - 1)] if self._helpers else []
        work()
        for helper in helpers:
            helper.result()
        if errors:
            raise errors[min(errors)]
        return [results[position] for position in sorted(results)]

    def _workspace(self) -> Workspace:
        """The thread's own."""
        thread = threading.get_ident()
        if thread not in self._workspaces:
            self._workspaces[thread] = Workspace()
        return self._workspaces[thread]

    def close(self) -> None:
        """End the threads."""
        if self._helpers is not None:
            self._helpers.shutdown(cancel_futures=True)


def fair_threads(communicator: Communicator) -> int:
    """This rank's share of the cores: each core is divided among the ranks of the host that may run on it."""
    host, cores = socket.gethostname(), os.sched_getaffinity(0)
    everyone = communicator.allgather((host, cores))
    share = sum(
        Fraction(1, sum(other_host == host and core in other_cores for other_host, other_cores in everyone))
        for core in cores
    )
    return max(1, int(share))
