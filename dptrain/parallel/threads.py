"""Shards side by side on threads of one process, each with its own workspace."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dptrain.arrays.memory import Workspace
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import Result, ShardPool, ShardWork
from dptrain.system.cgroups import ROOT, cpu_limits

# Seconds after which a thread that waits for the GIL asks for it. With Python's 5 ms it is woken whenever the GIL is
# released, often to find it taken again, and each wake costs some 50 us. Threads here hold it for some microseconds at
# a time; asking early reduced voluntary context switches from 10 to 4 a microbatch (measured).
SWITCH_INTERVAL = 20e-6


class ShardThreads(ShardPool):
    """Computes on `size` threads. NumPy releases the GIL while it computes.

    Each thread takes the next shard that is left: a shard's result does not depend on the thread. The caller waits for
    the others once: each wake of a thread costs some 50 us and the GIL.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._workspaces: dict[int, Workspace] = {}  # by thread
        self._executor = ThreadPoolExecutor(size - 1, "shard") if size > 1 else None
        if size > 1:
            sys.setswitchinterval(SWITCH_INTERVAL)

    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        prepared = work.prepare(*arguments)
        waiting = deque(enumerate(shards))
        results: dict[int, Result] = {}
        errors: dict[int, Exception] = {}

        def compute() -> None:
            while waiting:
                try:
                    position, shard = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    results[position] = work.compute(shard, prepared, self._workspace())
                except Exception as error:
                    errors[position] = error

        others = [self._executor.submit(compute) for _ in range(self.size - 1)] if self._executor else []
        compute()
        for other in others:
            other.result()
        if errors:
            raise errors[min(errors)]
        return [results[position] for position in sorted(results)]

    def _workspace(self) -> Workspace:
        """The workspace of the calling thread."""
        thread = threading.get_ident()
        if thread not in self._workspaces:
            self._workspaces[thread] = Workspace()
        return self._workspaces[thread]

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def fair_threads(communicator: Communicator, root: Path = ROOT) -> int:
    """This rank's share of the host's cores, at least 1.

    Each core is divided among the ranks that may run on it, and the CPU quota of a control group among the ranks in it
    (`dptrain.system.cgroups`, below `root`).
    """
    host, cores, quotas = socket.gethostname(), os.sched_getaffinity(0), cpu_limits(root)
    everyone = communicator.allgather((host, cores, quotas))
    neighbours = [(others, limited) for name, others, limited in everyone if name == host]
    share = sum(1 / sum(core in others for others, _ in neighbours) for core in cores)
    for group, quota in quotas.items():
        share = min(share, quota / sum(group in limited for _, limited in neighbours))
    return max(1, int(share + 1e-9))  # three times a third of a core is one core
