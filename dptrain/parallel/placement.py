"""Which rank holds which shards, and the one tree over shards that every sum follows.

The tree over S shards halves a range at the largest power of two below its length:

    S = 8:  ((0 1) (2 3)) ((4 5) (6 7))          S = 5:  ((0 1) (2 3)) 4

The tree does not depend on the ranks. A rank adds up the largest subtrees within its block, and these sums are added
along the same tree. So the order of additions, and with it every bit, is the same on any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

Node = tuple[int, int]  # the shards lo <= shard < hi below one node of the tree


@dataclass(frozen=True)
class Placement:
    """S shards on R <= S ranks, each a contiguous block, block sizes at most one apart."""

    shards: int
    ranks: int

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= self.shards:
            raise ValueError(f"{self.ranks} ranks for {self.shards} shards: a shard is never split")

    def shards_of(self, rank: int) -> range:
        """The shards of a rank."""
        return range(rank * self.shards // self.ranks, (rank + 1) * self.shards // self.ranks)

    def subtrees_of(self, rank: int) -> list[Node]:
        """The largest nodes of the tree within the rank's block, from left to right: at most 2 log2 S."""
        block = self.shards_of(rank)
        return _within((0, self.shards), (block.start, block.stop))


def children(node: Node) -> tuple[Node, Node]:
    """The two halves of a node of at least two shards."""
    lo, hi = node
    middle = lo + (1 << (hi - lo - 1).bit_length() - 1)
    return (lo, middle), (middle, hi)


def _within(node: Node, block: Node) -> list[Node]:
    lo, hi = node
    if block[0] <= lo and hi <= block[1]:
        return [node]
    if hi <= block[0] or block[1] <= lo:
        return []
    left, right = children(node)
    return _within(left, block) + _within(right, block)
