"""The sum of all shards' vectors along one fixed tree over shards: the same bits on any number of ranks.

Every rank first sums the subtrees that lie within its block of shards. The rest is exchanged by slices: rank r
receives slice r of every partial sum, finishes the tree on it, and all ranks gather the finished slices. That moves
as many bytes as a ring allreduce. The slices of a sum do not depend on one another, so the bits do not depend on the
number of ranks.
"""

from __future__ import annotations

from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.parallel.reduce.reducer import Lengths, Reducer, sum_tree


class TreeReducer(Reducer):
    """See the head of this file."""

    def __init__(self, placement: Placement, communicator: Communicator, lengths: Lengths) -> None:
        super().__init__(placement, communicator, lengths)
        length, ranks, own = sum(lengths), range(placement.ranks), communicator.rank
        subtrees = [placement.subtrees_of(rank) for rank in ranks]
        bounds = [rank * length // placement.ranks for rank in range(placement.ranks + 1)]
        self._slices = [slice(bounds[rank], bounds[rank + 1]) for rank in ranks]
        self._counts = [bounds[rank + 1] - bounds[rank] for rank in ranks]
        self._nodes = [node for one in subtrees for node in one]
        self._send_counts = [len(subtrees[own]) * self._counts[rank] for rank in ranks]
        self._receive_counts = [len(subtrees[rank]) * self._counts[own] for rank in ranks]
        self._send = aligned_zeros(sum(self._send_counts))
        self._receive = aligned_zeros(sum(self._receive_counts))
        self._total = aligned_zeros(length)

    def _exchange(self, partial: list[Array]) -> Array:
        if self.placement.ranks == 1:
            return partial[0]
        start = 0
        for part, count in zip(self._slices, self._counts, strict=True):
            for vector in partial:
                self._send[start : start + count] = vector[part]
                start += count
        communicator = self.communicator
        self._wait_for(communicator.alltoall, self._send, self._send_counts, self._receive, self._receive_counts)
        rows = self._receive.reshape(len(self._nodes), self._counts[communicator.rank])
        own = sum_tree((0, self.placement.shards), dict(zip(self._nodes, rows, strict=True)))
        self._wait_for(communicator.allgather_slices, own, self._total, self._counts)
        return self._total
