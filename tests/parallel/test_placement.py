"""dptrain.parallel.placement: blocks partition the shards, and the tree does not depend on the number of ranks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from dptrain.parallel.placement import Node, Placement, children

MOST_SHARDS = 64
Tree = int | tuple["Tree", "Tree"]


@st.composite
def placements(draw: st.DrawFn, most: int = MOST_SHARDS) -> Placement:
    shards = draw(st.integers(1, most))
    return Placement(shards, draw(st.integers(1, shards)))


def tree_of(shards: list[int]) -> Tree:
    """The tree by its definition: the left part is the largest power of two below the number of shards."""
    if len(shards) == 1:
        return shards[0]
    left = max(2**k for k in range(20) if 2**k < len(shards))
    return tree_of(shards[:left]), tree_of(shards[left:])


def nested(node: Node) -> Tree:
    """The tree that `children` spans below a node."""
    if node[1] - node[0] == 1:
        return node[0]
    left, right = children(node)
    return nested(left), nested(right)


def nodes_below(shards: range) -> set[Node]:
    """All nodes of the tree over these shards, by its definition."""
    if len(shards) == 1:
        return {(shards.start, shards.stop)}
    left = max(2**k for k in range(20) if 2**k < len(shards))
    return {(shards.start, shards.stop)} | nodes_below(shards[:left]) | nodes_below(shards[left:])


@given(placement=placements(2000))
def test_blocks_are_contiguous_partition_the_shards_and_differ_by_at_most_one(placement: Placement) -> None:
    blocks = [placement.shards_of(rank) for rank in range(placement.ranks)]
    assert [shard for block in blocks for shard in block] == list(range(placement.shards))
    sizes = [len(block) for block in blocks]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@examples(200)
@given(placement=placements())
def test_subtrees_are_the_largest_nodes_that_make_up_the_block(placement: Placement) -> None:
    nodes = nodes_below(range(placement.shards))
    for rank in range(placement.ranks):
        block = placement.shards_of(rank)
        within = {(lo, hi) for lo, hi in nodes if block.start <= lo and hi <= block.stop}
        inner = {child for node in within if node[1] - node[0] > 1 for child in children(node)}
        assert placement.subtrees_of(rank) == sorted(within - inner)
        assert [shard for lo, hi in placement.subtrees_of(rank) for shard in range(lo, hi)] == list(block)


def test_no_rank_holds_more_than_two_log_s_subtrees() -> None:
    """Every placement of up to 64 shards."""
    for shards in range(1, MOST_SHARDS + 1):
        most = max(1.0, 2 * math.log2(shards))
        for ranks in range(1, shards + 1):
            placement = Placement(shards, ranks)
            assert all(len(placement.subtrees_of(rank)) <= most for rank in range(ranks))


def test_one_rank_holds_the_root_and_one_rank_per_shard_holds_a_leaf() -> None:
    for shards in range(1, MOST_SHARDS + 1):
        assert Placement(shards, 1).subtrees_of(0) == [(0, shards)]
        leaves = Placement(shards, shards)
        assert [leaves.subtrees_of(rank) for rank in range(shards)] == [[(s, s + 1)] for s in range(shards)]


@pytest.mark.parametrize(
    ("shards", "tree"),
    [(2, (0, 1)), (3, ((0, 1), 2)), (5, (((0, 1), (2, 3)), 4)), (8, (((0, 1), (2, 3)), ((4, 5), (6, 7))))],
)
def test_tree_agrees_with_the_documentation(shards: int, tree: Tree) -> None:
    assert nested((0, shards)) == tree


def test_tree_splits_at_the_largest_power_of_two() -> None:
    for shards in range(1, 130):
        assert nested((0, shards)) == tree_of(list(range(shards)))


@pytest.mark.parametrize(("shards", "ranks"), [(8, 9), (1, 2), (4, 100)])
def test_more_ranks_than_shards_are_refused(shards: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"{ranks} ranks for {shards} shards"):
        Placement(shards, ranks)


def test_zero_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="0 ranks"):
        Placement(4, 0)
