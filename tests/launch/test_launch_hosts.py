"""launch.hosts: the hosts of a job, and how many ranks each has."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import OPEN_MPI, ends, only_line, run_launch

from dptrain.errors import UsageError
from launch import hosts
from launch.hosts import first_places, host_list, is_local, parse_hosts, reachable, read_hostfile, spread


def spread_out(text: str, ranks: int | None) -> str:
    return host_list(spread(parse_hosts(text.split(",")), ranks))


@pytest.mark.parametrize(
    ("text", "ranks", "expected"),
    [
        ("a:2,b:2", None, "a:2,b:2"),
        ("a:2,b:2", 3, "a:2,b:1"),
        ("a:2,b:2", 2, "a:2"),
        ("a,b", None, "a:1,b:1"),
        ("a,b", 5, "a:3,b:2"),
        ("a,b,c", 2, "a:1,b:1"),
        ("a:3,b", None, "a:3,b:1"),
        ("a:1,b:1,a:2", None, "a:3,b:1"),
        ("node-1.example.org:16", None, "node-1.example.org:16"),
    ],
)
def test_hosts_have_the_ranks_that_are_given_or_equal_shares(text: str, ranks: int | None, expected: str) -> None:
    assert spread_out(text, ranks) == expected


@pytest.mark.parametrize("text", ["", "a:", "a:0", "a:-1", "a:x", "a,,b", "a b", ":2", "a:1:2"])
def test_a_wrong_list_of_hosts_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"found .*, expected HOST or HOST:RANKS"):
        spread_out(text, None)


def test_more_ranks_than_the_hosts_have_is_an_error() -> None:
    with pytest.raises(UsageError, match="-n 5: the hosts have room for 4 ranks"):
        spread_out("a:2,b:2", 5)


def test_lines_of_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\n\nnode1 slots=4\n  node2   max_slots=8 slots = 2  # the old one\nnode3:3\nnode5\n")
    assert read_hostfile(str(path)) == {"node1": 4, "node2": 2, "node3": 3, "node5": None}


@pytest.mark.parametrize(("content", "expected"), [(None, "cannot be read"), ("# none\n", "no host"), ("a:b\n", "a:b")])
def test_a_wrong_hostfile_is_an_error(content: str | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=expected):
        read_hostfile(str(path))


def test_this_host_is_local_by_name_and_address() -> None:
    assert is_local("localhost")
    assert is_local(socket.gethostname())
    assert not is_local("192.0.2.1")  # an address for documentation, which no host has


def test_hosts_that_do_not_answer_are_left_out_with_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "answers", lambda host: host != "b")
    there = reachable({"a": 2, "b": 2, "c": 2})
    assert there == {"a": 2, "c": 2}
    assert first_places(there, 3) == {"a": 2, "c": 1}
    assert first_places({}, 3) == {}


def words_of(fake_mpirun: Callable[..., str], *arguments: str, **variables: str) -> list[str]:
    done = run_launch("--mpirun", fake_mpirun(OPEN_MPI), "--dry-run", *arguments, "--", "train", "data", **variables)
    assert done.returncode == 0, done.stderr
    return shlex.split(only_line(done.stdout))


@pytest.mark.slow
def test_the_number_of_ranks_follows_from_the_hosts(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    words = words_of(fake_mpirun, "--hosts", "a:2,b:3")
    assert words[words.index("--host") :][:2] == ["--host", "a:2,b:3"]
    assert words[words.index("-n") :][:2] == ["-n", "5"]
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    words = words_of(fake_mpirun, "--hostfile", str(tmp_path / "hosts"))
    assert words[words.index("--host") :][:2] == ["--host", "a:1,b:1"]


@pytest.mark.slow
def test_a_slurm_job_has_as_many_ranks_as_tasks(fake_mpirun: Callable[..., str]) -> None:
    words = words_of(fake_mpirun, SLURM_JOB_ID="7", SLURM_NTASKS="6", SLURM_JOB_NUM_NODES="2")
    assert words[words.index("-n") :][:2] == ["-n", "6"]
    assert "--host" not in words
    words = words_of(fake_mpirun, SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="2")
    assert words[words.index("-n") :][:2] == ["-n", "2"]


@pytest.mark.slow
def test_a_host_that_cannot_be_reached_is_left_out_of_a_restart(
    fake_mpirun: Callable[..., str], tmp_path: Path
) -> None:
    """192.0.2.1 is an address for documentation, which no host has; this ssh fails at once."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexit 255\n")
    ssh.chmod(0o755)
    job = f'echo "$@" >>{tmp_path}/seen; [ $(wc -l <{tmp_path}/seen) = 1 ] && exit 1; {ends(0)}'
    hosts = f"192.0.2.1:2,{socket.gethostname()}:2"
    done = run_launch(
        *("--mpirun", fake_mpirun(OPEN_MPI, job), "--hosts", hosts, "--max-restarts", "1", "--min-ranks", "1"),
        *("--", "train", "data", "--run-dir", str(tmp_path / "run")),
        PATH=f"{ssh.parent}:/usr/bin:/bin",
    )
    assert done.returncode == 0, done.stderr
    assert "launch: hosts that cannot be reached and are left out: 192.0.2.1" in done.stderr
    first, second = (tmp_path / "seen").read_text().splitlines()
    assert f"--host {hosts} " in first
    assert f"--host {socket.gethostname()}:2 " in second
