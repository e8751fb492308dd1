"""launch.binding: the cores of a host, and how many each rank is bound to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch import binding
from launch.binding import Host, cores_per_rank, packages_of, this_host


@pytest.mark.parametrize(
    ("packages", "ranks", "cores"),
    [
        ((4,), 4, 1),
        ((4,), 2, 2),
        ((5,), 2, 2),
        ((4,), 5, None),  # more ranks than cores
        ((4,), 1, None),  # alone, it has them all
        ((4, 4), 2, 4),
        ((6, 6), 3, None),  # the second rank's four cores would lie in both packages
        ((6, 6), 4, 3),
    ],
)
def test_cores_of_each_rank(packages: tuple[int, ...], ranks: int, cores: int | None) -> None:
    assert cores_per_rank(ranks, Host(packages, bindable=True)) == cores
    assert cores_per_rank(ranks, Host(packages, bindable=False)) is None


def test_hardware_threads_of_a_core_count_once_and_packages_apart(tmp_path: Path) -> None:
    for cpu in range(8):  # two packages of two cores with two threads each; Linux numbers second threads last
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert packages_of(set(range(8)), tmp_path) == (2, 2)
    assert packages_of({0, 1, 2, 4}, tmp_path) == (2, 1)
    assert packages_of({0, 1, 9}, tmp_path) == (3,)  # nothing known of cpu9: logical CPUs are counted


def test_a_process_confined_to_some_cores_leaves_its_ranks_unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: len(mine))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
    assert this_host().bindable
    monkeypatch.setattr(os, "cpu_count", lambda: len(mine) + 1)
    assert not this_host().bindable


def test_where_binding_is_forbidden_ranks_stay_unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, cpus: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(binding.os, "sched_setaffinity", forbidden)
    assert not this_host().bindable
