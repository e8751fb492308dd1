"""launch.hosts: which hosts of a hostfile an attempt uses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.hosts import HOSTFILE, is_local, reachable_hosts, slots_of
from launch.mpirun import Kind


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("node1 slots=4", ("node1", 4)),
        ("  node1   max_slots=8 slots = 2  # the old one", ("node1", 2)),
        ("node1:3", ("node1", 3)),
        ("node1.example.org", ("node1.example.org", None)),
        ("# node1 slots=4", None),
        ("", None),
    ],
)
def test_lines_of_a_hostfile(line: str, found: tuple[str, int | None] | None) -> None:
    assert slots_of(line) == found


def test_this_host_is_local_by_name_and_address() -> None:
    assert is_local("localhost")
    assert is_local(socket.gethostname())
    assert not is_local("192.0.2.1")  # an address for documentation, which nobody has


def used(hostfile: str, ranks: int, min_ranks: int, *gone: str, folder: Path, kind: Kind = Kind.OPEN_MPI) -> object:
    """Lines of the hostfile that an attempt uses, and its ranks, where these hosts do not answer."""
    path = folder / "hosts"
    path.write_text(hostfile)
    environment = {HOSTFILE[kind]: str(path), "HOME": "/root"}
    with reachable_hosts(kind, environment, ranks, min_ranks, lambda host: host not in gone) as (chosen, number):
        assert chosen["HOME"] == "/root"
        return Path(chosen[HOSTFILE[kind]]).read_text().splitlines(), number


THREE = "# ours\na slots=2\nb slots=2\nc slots=2\n"


def test_all_hosts_are_used_while_they_answer(tmp_path: Path) -> None:
    assert used(THREE, 6, 1, folder=tmp_path) == (THREE.splitlines(), 6)


def test_hosts_that_do_not_answer_are_left_out_with_their_slots(tmp_path: Path) -> None:
    assert used(THREE, 6, 4, "b", folder=tmp_path) == (["a slots=2", "c slots=2"], 4)
    assert used(THREE, 3, 1, "b", folder=tmp_path) == (["a slots=2", "c slots=2"], 3)
    assert used("a:2\nb:2\n", 4, 1, "b", folder=tmp_path, kind=Kind.MPICH) == (["a:2"], 2)


def test_ranks_stay_where_a_host_that_is_left_has_no_number_of_slots(tmp_path: Path) -> None:
    assert used("a\nb\n", 4, 1, "b", folder=tmp_path) == (["a"], 4)


@pytest.mark.parametrize("gone", [("b",), ("a", "b", "c")])
def test_hosts_stay_if_too_few_ranks_would_be_left(gone: tuple[str, ...], tmp_path: Path) -> None:
    assert used(THREE, 6, 5, *gone, folder=tmp_path) == (THREE.splitlines(), 6)


def test_without_a_hostfile_nothing_changes() -> None:
    environment = {"PATH": "/bin"}
    with reachable_hosts(Kind.OPEN_MPI, environment, 3, 1, lambda host: False) as found:
        assert found == (environment, 3)


def test_the_shorter_hostfile_is_removed_after_the_attempt(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(THREE)
    environment = {HOSTFILE[Kind.OPEN_MPI]: str(path)}
    with reachable_hosts(Kind.OPEN_MPI, environment, 3, 1, lambda host: host == "a") as (chosen, _):
        made = Path(chosen[HOSTFILE[Kind.OPEN_MPI]])
        assert made.exists()
    assert not made.exists()
    assert path.read_text() == THREE
