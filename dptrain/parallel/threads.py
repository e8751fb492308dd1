"""The threads of a rank: they run its shards side by side, each with a workspace of its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TypeVar

from dptrain.nn.workspace import Workspace
from dptrain.parallel.communicator import Communicator

Result = TypeVar("Result")


class ShardPool:
    """Calls a function for every shard, on `threads` threads. NumPy leaves the GIL while it computes.

    Which thread takes which shard is left to chance: a shard's result does not depend on it.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._own = threading.local()
        self._executor = ThreadPoolExecutor(threads, "shard") if threads > 1 else None

    def map(self, function: Callable[[int, Workspace], Result], shards: Iterable[int]) -> list[Result]:
        """Results of function(shard, workspace) in the order of the shards; the first error is raised."""
        if self._executor is None:
            return [self._call(function, shard) for shard in shards]
        return list(self._executor.map(lambda shard: self._call(function, shard), shards))

    def _call(self, function: Callable[[int, Workspace], Result], shard: int) -> Result:
        if not hasattr(self._own, "workspace"):
            self._own.workspace = Workspace()
        return function(shard, self._own.workspace)

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def fair_threads(communicator: Communicator) -> int:
    """This rank's share of the cores: each core is divided among the ranks of the host that may run on it."""
    host, cores = socket.gethostname(), os.sched_getaffinity(0)
    everyone = communicator.allgather((host, cores))
    share = sum(
        Fraction(1, sum(other_host == host and core in other_cores for other_host, other_cores in everyone))
        for core in cores
    )
    return max(1, int(share))
