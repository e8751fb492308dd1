"""dptrain.system.cores: the share of its host's cores that each rank takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dptrain.system import cores
from dptrain.system.cores import VARIABLE, YIELD, bind_to_cores, physical_cores


def test_hardware_threads_of_a_core_stay_together_and_packages_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "SYSFS_CPUS", tmp_path)
    for cpu in range(8):  # two packages of two cores with two threads each; Linux numbers second threads last
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{cpu % 2}\n")
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert physical_cores(range(8)) == [{0, 4}, {2, 6}, {1, 5}, {3, 7}]
    assert physical_cores({0, 1, 4}) == [{0, 4}, {1}]
    assert physical_cores({8, 9}) == [{8}, {9}]  # nothing is known of these


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a rank of a host with CPUs 2 to 6, a core each, binds itself to."""
    found: dict[str, object] = {}
    monkeypatch.setattr(cores, "SYSFS_CPUS", Path("/none"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5, 6})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: found.update(cpus=cpus))
    for name in (*cores.LOCAL_RANK, *cores.LOCAL_RANKS, YIELD):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize(
    ("names", "rank", "ranks", "expected"),
    [
        (0, 0, 2, {2, 3}),
        (0, 1, 2, {4, 5}),
        (1, 4, 5, {6}),
        (1, 0, 1, None),  # a single rank has all cores
        (0, 0, 6, None),  # more ranks than cores
    ],
)
def test_a_rank_takes_its_share_of_the_cores_it_may_use(
    names: int, rank: int, ranks: int, expected: object, bound: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "cores")
    monkeypatch.setenv(cores.LOCAL_RANK[names], str(rank))
    monkeypatch.setenv(cores.LOCAL_RANKS[names], str(ranks))
    bind_to_cores()
    assert bound.get("cpus") == expected
    assert os.environ.get(YIELD) == ("1" if ranks == 6 else None)
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("value", ["none", ""])
def test_a_rank_stays_unbound_unless_binding_is_requested(
    value: str, bound: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setenv(cores.LOCAL_RANK[0], "0")
    monkeypatch.setenv(cores.LOCAL_RANKS[0], "2")
    bind_to_cores()
    assert bound == {}


def test_a_rank_stays_unbound_where_binding_is_forbidden(
    bound: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: int, cpus: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    monkeypatch.setenv(VARIABLE, "cores")
    monkeypatch.setenv(cores.LOCAL_RANK[0], "0")
    monkeypatch.setenv(cores.LOCAL_RANKS[0], "2")
    bind_to_cores()


@pytest.mark.parametrize(("rank", "ranks"), [("", "2"), ("0", ""), ("0", "two"), ("x", "2"), ("0", "0")])
def test_a_rank_stays_unbound_without_a_valid_number_of_ranks(
    rank: str, ranks: str, bound: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "cores")
    monkeypatch.setenv(cores.LOCAL_RANK[0], rank)
    monkeypatch.setenv(cores.LOCAL_RANKS[0], ranks)
    bind_to_cores()
    assert bound == {}
