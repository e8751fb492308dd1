"""What is computed for every shard on its own, and who computes it side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from dptrain.arrays.memory import Workspace

Result = TypeVar("Result")


class ShardWork(ABC, Generic[Result]):
    """A task that every shard has its part of. A shard's result depends on nothing that another shard computes.

    The parts may be computed in other processes, which see this object as it was when their pool was made: what
    changes later is an argument, or lies in memory that all share (`dptrain.parallel.processes.shared_zeros`).
    """

    def prepare(self, *arguments: Any) -> Any:
        """From the arguments of `ShardPool.map` what all parts need, made once a call in each process."""
        return arguments

    @abstractmethod
    def compute(self, shard: int, prepared: Any, workspace: Workspace) -> Result:
        """One shard's part, with a workspace that no other part uses at the same time."""


class ShardPool(ABC):
    """Computes the parts of a task, `size` of them at the same time. The caller is one of those who compute."""

    size: int

    @abstractmethod
    def map(self, work: ShardWork[Result], shards: Iterable[int], *arguments: Any) -> list[Result]:
        """The results in the order of the shards; of errors the first shard's is raised, after all have ended."""

    @abstractmethod
    def close(self) -> None:
        """End everyone but the caller."""
