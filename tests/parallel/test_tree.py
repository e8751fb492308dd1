"""dptrain.parallel.reduce.tree: the same bits from any number of ranks, along one tree over shards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_runs import PROGRAMS, VARIABLES, mpirun, own_mpi
from selection import quick_first
from thread_ranks import on_ranks

from dptrain.arrays.memory import Array
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Node, Placement
from dptrain.parallel.reduce.mpi import MPIReducer
from dptrain.parallel.reduce.reducer import Lengths, Reducer, sum_tree
from dptrain.parallel.reduce.tree import TreeReducer

LENGTHS = (1, 5, 333)
EPSILON = float(np.finfo(np.float32).eps)


def shard_vectors(shards: int, length: int, seed: int = 0) -> Array:
    """float32 (S, length) of very different sizes, so that the order of additions changes the bits."""
    generator = np.random.default_rng([shards, length, seed])
    magnitudes = 10.0 ** generator.integers(-3, 4, (shards, length))
    return (generator.standard_normal((shards, length)) * magnitudes).astype(np.float32)


def oracle(vectors: Array) -> Array:
    """The tree sum of float32 (S, length), by the definition of the tree."""
    if len(vectors) == 1:
        first: Array = vectors[0].copy()
        return first
    left = max(2**k for k in range(20) if 2**k < len(vectors))
    total = oracle(vectors[:left])
    total += oracle(vectors[left:])
    return total


def reduce_on(kind: type[Reducer], ranks: int, calls: Sequence[Array]) -> list[list[Array]]:
    """For each rank, the sum that its reducer returns for each of `calls`, one after the other."""
    shards, length = calls[0].shape
    placement = Placement(shards, ranks)

    def rank_program(communicator: Communicator) -> list[Array]:
        reducer = kind(placement, communicator, Lengths(length, 0, 0, 0))
        totals = []
        for vectors in calls:
            reducer.begin()
            for shard, own in reducer.vectors.items():
                own[...] = vectors[shard]
            totals.append(reducer.finish().gradient.copy())
        return totals

    return on_ranks(ranks, rank_program)


@quick_first("shards", range(1, 10), quick=6)
def test_any_number_of_ranks_gives_the_bits_of_the_tree(shards: int) -> None:
    for length in LENGTHS:
        calls = [shard_vectors(shards, length, seed) for seed in range(2)]  # the second finds used buffers
        expected = [oracle(vectors).tobytes() for vectors in calls]
        for ranks in range(1, shards + 1):
            for totals in reduce_on(TreeReducer, ranks, calls):
                assert [total.tobytes() for total in totals] == expected, (shards, ranks, length)


@pytest.mark.parametrize("shards", [4, 6, 7, 8, 9])
def test_another_order_of_additions_gives_other_bits_for_these_vectors(shards: int) -> None:
    vectors = shard_vectors(shards, 333)
    left_to_right = np.zeros(333, np.float32)
    for vector in vectors:
        left_to_right += vector
    assert left_to_right.tobytes() != oracle(vectors).tobytes()


@pytest.mark.parametrize("kind", [TreeReducer, MPIReducer])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_sum_is_accurate_to_single_precision(kind: type[Reducer], ranks: int) -> None:
    vectors = shard_vectors(8, 333)
    exact = vectors.astype(np.float64)
    # An addition errs by at most half an epsilon of its result; no path is longer than S - 1 of them.
    bound = 7 * EPSILON / 2 * np.abs(exact).sum(axis=0) * 1.01
    for (total,) in reduce_on(kind, ranks, [vectors]):
        assert total.dtype == np.float32
        assert (np.abs(total - exact.sum(axis=0)) <= bound).all()


@pytest.mark.parametrize("kind", [TreeReducer, MPIReducer])
def test_statistics_sums_and_requests_are_summed_after_the_gradient(kind: type[Reducer]) -> None:
    def rank_program(communicator: Communicator) -> list[list[list[float]]]:
        reducer = kind(Placement(5, 3), communicator, Lengths(4, 3, 2, 2))
        found = []
        for _ in range(2):
            reducer.begin([communicator.rank == 1, True])
            for shard, parts in reducer.parts.items():
                parts.gradient[:], parts.statistics[:], parts.sums[:] = shard, 10 * shard, (1, shard == 4)
            found.append([part.tolist() for part in reducer.finish()[1:]])
        return found

    for found in on_ranks(3, rank_program):
        assert found == [[[10.0] * 4, [100.0] * 3, [5.0, 1.0], [1.0, 3.0]]] * 2


class Term:
    """Records in which order it was added."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __iadd__(self, other: Term) -> Term:
        return Term(f"({self.text} {other.text})")


def written_tree(shards: list[int]) -> str:
    """The tree as text, by its definition."""
    if len(shards) == 1:
        return str(shards[0])
    left = max(2**k for k in range(20) if 2**k < len(shards))
    return f"({written_tree(shards[:left])} {written_tree(shards[left:])})"


def test_additions_follow_one_tree_on_any_number_of_ranks() -> None:
    for shards in range(1, 34):
        expected = written_tree(list(range(shards)))
        for ranks in range(1, shards + 1):
            placement = Placement(shards, ranks)
            partial: dict[Node, Any] = {}
            for rank in range(ranks):
                leaves: dict[Node, Any] = {(s, s + 1): Term(str(s)) for s in placement.shards_of(rank)}
                partial |= {node: sum_tree(node, leaves) for node in placement.subtrees_of(rank)}
            total: Any = sum_tree((0, shards), partial)
            assert total.text == expected


def added(first: str, second: str) -> str:
    return f"({first} {second})"


@pytest.mark.parametrize("kind", [TreeReducer, MPIReducer])
@pytest.mark.parametrize("shards", [1, 5, 8])
def test_small_values_follow_the_same_tree_on_every_rank(kind: type[Reducer], shards: int) -> None:
    def rank_program(communicator: Communicator) -> str:
        placement = Placement(shards, communicator.size)
        values = {shard: str(shard) for shard in placement.shards_of(communicator.rank)}
        return kind(placement, communicator, Lengths(1, 0, 0, 0)).total(values, added)

    for ranks in range(1, shards + 1):
        assert on_ranks(ranks, rank_program) == [written_tree(list(range(shards)))] * ranks


def sums_on(mpi: str, ranks: int, folder: Path) -> Any:
    done = mpirun(mpi, ranks, PROGRAMS / "reduction_sums.py", cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sums_without_mpi(folder: Path) -> Any:
    command = [sys.executable, str(PROGRAMS / "reduction_sums.py")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.mpi
def test_real_ranks_give_the_bits_of_one_process(tmp_path: Path) -> None:
    alone, found = sums_without_mpi(tmp_path), sums_on(own_mpi(), 5, tmp_path)
    assert {case: digest for case, (digest, _) in found["tree"].items()} == {
        case: digest for case, (digest, _) in alone["tree"].items()
    }
    for figures in found.values():
        assert len(figures) == 5
        # At most S - 1 = 12 additions, each off by at most half an epsilon of the magnitudes summed.
        assert max(error for _, error in figures.values()) <= 12 * EPSILON / 2


@pytest.mark.mpi
@pytest.mark.once
def test_both_mpis_give_the_same_bits(tmp_path: Path) -> None:
    openmpi, mpich = (sums_on(mpi, 2, tmp_path)["tree"] for mpi in VARIABLES)
    assert openmpi == mpich
