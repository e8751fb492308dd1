"""Work that is done for each shard alone, and pools that do it for several shards at a time: here, on threads."""

from __future__ import annotations

import os
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from dptrain.arrays.memory import Workspace
from dptrain.parallel.communicator import Communicator
from dptrain.system.cgroups import ROOT, cpu_limits

Result = TypeVar("Result")

# Seconds after which a thread that waits for the GIL asks for it. With Python's 5 ms it is woken whenever the GIL is
# released, often to find it taken again, and each wake costs some 50 us. Threads here hold it for some microseconds at
# a time; asking early reduced voluntary context switches from 10 to 4 a microbatch (measured).
SWITCH_INTERVAL = 20e-6


class ShardWork(ABC, Generic[Result]):
    """A task with one part for each shard. The result of a shard does not depend on other shards.

    The parts may be computed in other processes, which have this object as it was when their pool was made: pass later
    changes as arguments, or in shared memory (`dptrain.parallel.processes.shared_zeros`).
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

    Each thread takes the next shard that is left: a shard's result does not depend on the thread. The caller waits for
    the others once: each wake of a thread costs some 50 us and the GIL.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._workspaces: dict[int, Workspace] = defaultdict(Workspace)  # by thread
        self._executor = ThreadPoolExecutor(max(1, size - 1), "shard")
        if size > 1:
            sys.setswitchinterval(SWITCH_INTERVAL)

    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        prepared = work.prepare(*arguments)
        waiting = deque(enumerate(shards))
        results: dict[int, Result] = {}
        errors: dict[int, Exception] = {}

        def compute() -> None:
            workspace = self._workspaces[threading.get_ident()]
            while waiting:
                try:
                    position, shard = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    results[position] = work.compute(shard, prepared, workspace)
                except Exception as error:
                    errors[position] = error

        others = [self._executor.submit(compute) for _ in range(self.size - 1)]
        compute()
        for other in others:
            other.result()
        if errors:
            raise errors[min(errors)]
        return [results[position] for position in sorted(results)]

    def close(self) -> None:
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
