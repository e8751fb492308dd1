"""dptrain.doctor.ranks: ranks that differ, share cores, add wrongly, or have other clocks; ranks are threads."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from thread_ranks import ThreadCommunicator, on_ranks

from dptrain.arrays.memory import Array
from dptrain.doctor.finding import FAILURE, OK, WARNING, Finding, failure, ok
from dptrain.doctor.ranks import (
    check_bits,
    check_clocks,
    check_collectives,
    check_cores,
    check_software,
    compare,
    merge,
)
from dptrain.parallel.communicator import Communicator

HASWELL, ZEN = ({"numpy": "2", "blas_core": name} for name in ("Haswell", "Zen"))


def test_equal_findings_are_merged_and_different_ones_keep_their_ranks() -> None:
    one, other, third = (replace(ok(text), check="cores") for text in ("2 cores", "4 cores", "2 cores"))
    disk = replace(failure("full", "free some"), check="disk")
    merged = merge([[one, disk], [other, disk], [third]])
    assert [(found.found, ranks) for found, ranks in merged] == [
        ("2 cores", [0, 2]),
        ("4 cores", [1]),
        ("full", [0, 1]),
    ]


def bits(results: list[tuple[str | None, dict[str, str]]]) -> Finding:
    """What ranks with these results find."""

    def program(communicator: Communicator) -> Finding:
        sha256, environment = results[communicator.rank]
        facts: dict[str, Any] = {} if sha256 is None else {"sha256": sha256 * 64, "environment": environment}
        return check_bits(communicator, [ok("computed", **facts)], f"host{communicator.rank}")

    found = on_ranks(len(results), program)
    assert len({(one.result, one.found, one.remedy) for one in found}) == 1  # all ranks find the same
    return found[0]


def test_equal_results_are_ok() -> None:
    assert bits([("a", HASWELL), ("a", HASWELL), ("a", ZEN)]).result == OK


def test_another_result_is_explained_by_the_environment() -> None:
    found = bits([("a", HASWELL), ("a", HASWELL), ("b", ZEN), ("a", HASWELL)])
    assert (found.result, found.found) == (
        FAILURE,
        f"rank 2 on host2 computed SHA-256 {'b' * 16}, 3 of 4 computed {'a' * 16}: blas_core is Zen, not Haswell",
    )
    assert "--portable" in found.remedy


def test_another_result_without_an_explanation_suspects_the_memory() -> None:
    found = bits([("b", HASWELL), ("a", HASWELL), ("a", HASWELL)])
    assert found.result == FAILURE
    assert found.found.startswith("rank 0 on host0 computed")
    assert "memory" in found.remedy


def test_without_the_result_of_a_rank_nothing_is_compared() -> None:
    found = bits([("a", HASWELL), (None, HASWELL)])
    assert (found.result, found.found) == (WARNING, "not compared: rank 1 on host1 has no result")


def test_other_versions_of_packages_are_a_warning() -> None:
    def program(communicator: Communicator) -> Finding:
        numpy = "2.1" if communicator.rank == 2 else "2.0"
        return check_software(communicator, [ok("x", numpy=numpy, dptrain="0.2"), ok("y", python="3.11")], "node")

    (found,) = set(on_ranks(3, program))
    assert (found.result, found.found) == (WARNING, "rank 2 on node differs from rank 0: numpy is 2.1, not 2.0")


def test_more_ranks_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert {one.result for one in on_ranks(2, lambda communicator: check_cores(communicator, "a"))} == {OK}
    (found,) = set(on_ranks(3, lambda communicator: check_cores(communicator, "a")))
    assert (found.result, found.found) == (WARNING, "a has 3 ranks on 2 cores, expected a core for each rank")


class AddsWrongly(ThreadCommunicator):
    """Its sum has one wrong number on rank 1."""

    def allreduce(self, vector: Array) -> None:
        super().allreduce(vector)
        vector[7] += self.rank == 1


class LosesSlices(ThreadCommunicator):
    """Nothing arrives on rank 2, as in Open MPI's Allgatherv after the death of a rank."""

    def allgather_slices(self, own: Array, whole: Array, counts: Any) -> None:
        super().allgather_slices(own, whole, counts)
        whole *= self.rank != 2


def test_wrong_sums_are_failures() -> None:
    def program(kind: type[ThreadCommunicator]) -> Any:
        return lambda rank: check_collectives(kind(rank.board, rank.rank))

    assert {one.result for one in on_ranks(3, program(ThreadCommunicator))} == {OK}
    (found,) = set(on_ranks(3, program(AddsWrongly)))
    assert (found.result, found.found) == (FAILURE, "Allreduce gave a wrong sum on rank 1")
    (found,) = set(on_ranks(3, program(LosesSlices)))
    assert (found.result, found.found) == (FAILURE, "Alltoallv and Allgatherv gave a wrong sum on rank 2")


def test_clocks_that_differ_are_a_warning() -> None:
    def program(late: float) -> Any:
        return lambda rank: check_clocks(rank, f"host{rank.rank // 2}", lambda: 1000.0 + late * (rank.rank // 2))

    assert {one.result for one in on_ranks(4, program(1.0))} == {OK}
    (found,) = set(on_ranks(4, program(-5.0)))
    assert (found.result, found.found) == (WARNING, "the clock of host0 is 5.0 s ahead of that of host1")


def test_the_report_of_all_ranks_is_the_same_on_each() -> None:
    def program(communicator: Communicator) -> dict[str, Any]:
        space = replace(ok("little" if communicator.rank else "much"), check="disk")
        return compare(communicator, "3 threads", [space], f"host{communicator.rank % 2}")

    first, second, third = on_ranks(3, program)
    assert first == second == third
    assert first["hosts"] == ["host0", "host1", "host0"]
    found = {(finding["check"], finding["found"]): ranks for finding, ranks in first["findings"]}
    assert found["disk", "much"] == [0]
    assert found["disk", "little"] == [1, 2]
    assert found["ranks", "3 threads on 2 hosts"] == [0, 1, 2]
    assert {"clocks", "UDP between hosts", "same bits", "collectives"} <= {check for check, _ in found}
