"""The sum of all shards' vectors, along one fixed tree over shards.

Every rank first adds up the subtrees that lie within its block of shards. What is left is exchanged by
slices: rank r receives slice r of every partial sum, finishes the tree on it, and the finished slices are
joined. That moves as many bytes as a ring allreduce, and as a sum's slices do not depend on one another,
the bits do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Node, Placement, children


def sum_tree(node: Node, parts: Mapping[Node, Array]) -> Array:
    """The sum of a node's shards, from the sums of nodes below it. Overwrites the leftmost part."""
    if node in parts:
        return parts[node]
    left, right = children(node)
    total = sum_tree(left, parts)
    total += sum_tree(right, parts)
    return total


class TreeReduction:
    """Sums float32 vectors of `length` over all shards. Its buffers are kept from step to step."""

    def __init__(self, placement: Placement, communicator: Communicator, length: int) -> None:
        self.placement, self.communicator = placement, communicator
        ranks = range(placement.ranks)
        self.subtrees = [placement.subtrees_of(rank) for rank in ranks]
        bounds = [rank * length // placement.ranks for rank in range(placement.ranks + 1)]
        self.slices = [slice(bounds[rank], bounds[rank + 1]) for rank in ranks]
        self.lengths = [bounds[rank + 1] - bounds[rank] for rank in ranks]
        own = communicator.rank
        self._send_counts = [len(self.subtrees[own]) * self.lengths[rank] for rank in ranks]
        self._receive_counts = [len(self.subtrees[rank]) * self.lengths[own] for rank in ranks]
        self._send = aligned_zeros(sum(self._send_counts))
        self._receive = aligned_zeros(sum(self._receive_counts))
        self._total = aligned_zeros(length)

    def local_sums(self, vectors: Mapping[int, Array]) -> list[Array]:
        """Sums (length,) of this rank's subtrees, from the vectors (length,) of its shards, which are overwritten."""
        leaves = {(shard, shard + 1): vector for shard, vector in vectors.items()}
        return [sum_tree(node, leaves) for node in self.subtrees[self.communicator.rank]]

    def exchange(self, partial: list[Array]) -> Array:
        """The sum over all shards (length,), from every rank's `local_sums`.

        It lies in memory of those sums or of this object, so it is valid until either is used again.
        """
        if self.placement.ranks == 1:
            return partial[0]
        start = 0
        for part in self.slices:
            for vector in partial:
                count = part.stop - part.start
                self._send[start : start + count] = vector[part]
                start += count
        self.communicator.alltoall(self._send, self._send_counts, self._receive, self._receive_counts)
        nodes = [node for subtrees in self.subtrees for node in subtrees]
        rows = self._receive.reshape(len(nodes), self.lengths[self.communicator.rank])
        own = sum_tree((0, self.placement.shards), dict(zip(nodes, rows, strict=True)))
        self.communicator.allgather_slices(own, self._total, self.lengths)
        return self._total


class MPIReduction(TreeReduction):
    """The same sum by MPI's own Allreduce.

    It may use the vendor's tuning or the network's hardware. MPI fixes no order of summation: the bits
    depend on the number of ranks and on the library.
    """

    def exchange(self, partial: list[Array]) -> Array:
        total = partial[0]
        for vector in partial[1:]:
            np.add(total, vector, out=total)
        self.communicator.allreduce(total)
        return total


REDUCTIONS: dict[str, type[TreeReduction]] = {"tree": TreeReduction, "mpi": MPIReduction}
