"""Work that is done for each shard alone, and pools that do it for several shards at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from dptrain.arrays.memory import Workspace

Result = TypeVar("Result")


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
