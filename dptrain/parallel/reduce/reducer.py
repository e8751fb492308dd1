"""What a step needs of a reduction: vectors for the shards to fill, and their sum over all shards of all ranks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import iadd
from typing import NamedTuple, TypeVar

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Node, Placement, children
from dptrain.parallel.pool import shared_zeros

Value = TypeVar("Value")


class Lengths(NamedTuple):
    """How many numbers of each kind a vector holds, one kind behind the other."""

    gradient: int
    statistics: int
    sums: int
    requests: int


class Parts(NamedTuple):
    """A vector, and views of it: gradient (P,), statistics (B,), sums of figures, and requests of ranks."""

    vector: Array
    gradient: Array
    statistics: Array
    sums: Array
    requests: Array


def sum_tree(node: Node, parts: Mapping[Node, Value], add: Callable[[Value, Value], Value] = iadd) -> Value:
    """The sum of a node's shards, from the sums of nodes below it. With `iadd` overwrites the leftmost part."""
    if node in parts:
        return parts[node]
    left, right = children(node)
    return add(sum_tree(left, parts, add), sum_tree(right, parts, add))


class Reducer(ABC):
    """Sums one float32 vector of each shard over all shards. Its buffers are kept from step to step.

    In each step `begin` comes first. Then every shard writes its `parts`, except the requests, and reports complete
    slices by `ready`. `finish`, on all ranks, returns the sum. Forked workers share the vectors of the shards.
    """

    def __init__(self, placement: Placement, communicator: Communicator, lengths: Lengths) -> None:
        self.placement, self.communicator, self.lengths = placement, communicator, lengths
        shards = placement.shards_of(communicator.rank)
        self._subtrees = placement.subtrees_of(communicator.rank)
        ends = np.cumsum(lengths).tolist()
        self._slices_of_parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.vectors = {shard: shared_zeros(sum(lengths)) for shard in shards}
        self.parts = {shard: self._parts(vector) for shard, vector in self.vectors.items()}
        self.waited = 0.0  # seconds of the last step in MPI's calls: for other ranks, and for data to arrive

    def begin(self, requests: Sequence[bool] = ()) -> None:
        """Begin a step; `requests` are this rank's. In the sum, each request is the number of ranks that make it."""
        self.waited = 0.0
        for shard, parts in self.parts.items():
            parts.requests[:] = requests if shard == min(self.parts) and len(requests) else 0

    def ready(self, shard: int, part: slice) -> None:  # noqa: B027 - a subclass may define it
        """A slice of a shard's vector is complete, so its reduction could start while others are computed.

        Called by the thread or forked worker that computes the shard.
        """

    def finish(self) -> Parts:
        """The sum over all shards, valid until the next `begin`; RankLostError on all ranks if one has died."""
        leaves = {(shard, shard + 1): vector for shard, vector in self.vectors.items()}
        total = self._exchange([sum_tree(node, leaves) for node in self._subtrees])
        self._wait_for(self.communicator.confirm)
        return self._parts(total)

    def total(self, values: Mapping[int, Value], add: Callable[[Value, Value], Value]) -> Value:
        """The sum over all shards, along the tree, of small values that can be pickled; `values` are by shard.

        All ranks call it; it leaves the vectors alone. `add` must not change its arguments. Each rank gets the sums of
        all ranks' subtrees. RankLostError on all ranks if one has died.
        """
        leaves = {(shard, shard + 1): value for shard, value in values.items()}
        partial = {node: sum_tree(node, leaves, add) for node in self._subtrees}
        started = time.perf_counter()
        everyone: list[dict[Node, Value]] = self.communicator.allgather(partial)
        self.waited += time.perf_counter() - started
        whole = {node: value for one in everyone for node, value in one.items()}
        return sum_tree((0, self.placement.shards), whole, add)

    @abstractmethod
    def _exchange(self, partial: list[Array]) -> Array:
        """The sum over all shards, from the sums of this rank's subtrees, which may be overwritten."""

    def _wait_for(self, collective: Callable[..., None], *arguments: object) -> None:
        started = time.perf_counter()
        collective(*arguments)
        self.waited += time.perf_counter() - started

    def _parts(self, vector: Array) -> Parts:
        return Parts(vector, *(vector[part] for part in self._slices_of_parts))
