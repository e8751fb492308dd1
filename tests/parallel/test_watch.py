"""dptrain.parallel.watch: several ranks in one process over real sockets, and real ranks that are stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launch_runs import is_alive
from mpi_runs import PROGRAMS, mpirun, own_mpi
from thread_ranks import Board, ThreadCommunicator

from dptrain.health.activity import WAITING
from dptrain.parallel import watch as watch_module
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.watch import Watch, watchers_of
from dptrain.system.addresses import local_addresses

LIMIT = 1.0
HERE = socket.gethostname()


class Guest(ThreadCommunicator):
    """A rank that is a thread of this process; `host` is the host name that it reports."""

    def __init__(self, board: Board, rank: int, host: str) -> None:
        super().__init__(board, rank)
        self.host = host

    def allgather(self, value: Any) -> list[Any]:
        return super().allgather(self.host if value == HERE else value)


class Job:
    """A watch for each rank, and all lines that they report."""

    def __init__(self, *hosts: str, limit: float = LIMIT) -> None:
        self.lines: list[str] = []
        board = Board(len(hosts))
        self.watches: list[Any] = [None] * len(hosts)

        def meet(rank: int) -> None:
            communicator = Guest(board, rank, hosts[rank])
            self.watches[rank] = Watch(communicator, limit=limit, abort=0, report=self.lines.append)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(len(hosts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    def reported(self, lines: int) -> list[str]:
        """Wait for that many lines and return them."""
        until = time.monotonic() + LIMIT + 2
        while time.monotonic() < until and len(self.lines) < lines:
            time.sleep(0.02)
        return sorted(self.lines)

    def close(self) -> None:
        for watch in self.watches:
            watch.close()


@pytest.fixture
def jobs() -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(*hosts: str) -> Job:
        made.append(Job(*hosts))
        return made[-1]

    yield make
    for job in made:
        job.close()


@pytest.mark.slow
def test_a_rank_stuck_in_a_phase_is_reported_and_foreign_datagrams_are_ignored(jobs: Callable[..., Job]) -> None:
    job = jobs(HERE, HERE, HERE)
    for rank, watch in enumerate(job.watches):
        watch.activity.enter("loading data" if rank == 1 else WAITING, 41)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for watch in job.watches:
            for garbage in (b"", b"{", os.urandom(16), os.urandom(60_000), b"[" * 60_000, b"[1, 2]"):
                stranger.sendto(garbage, watch._socket.getsockname())
    [line] = job.reported(1)
    assert f"rank 1 on {HERE} (process {os.getpid()}), loading data in step 41, has made no progress" in line


@pytest.mark.slow
def test_a_slow_evaluation_with_progress_is_not_reported(jobs: Callable[..., Job]) -> None:
    job = jobs(HERE, HERE)
    job.watches[0].activity.enter("evaluating", 3)
    job.watches[1].activity.enter(WAITING, 3)
    for _ in range(8):
        time.sleep(0.25 * LIMIT)
        job.watches[0].activity.progress()
    assert job.lines == []


@pytest.mark.slow
def test_a_rank_that_has_closed_is_not_reported(jobs: Callable[..., Job]) -> None:
    job = jobs(HERE, HERE, HERE)
    job.watches.pop(0).close()
    for _ in range(3):
        time.sleep(LIMIT / 2)
        for watch in job.watches:
            watch.activity.enter("computing", 4)
    assert job.lines == []


@pytest.mark.slow
def test_a_forked_process_does_not_end_the_watch_of_its_rank(jobs: Callable[..., Job]) -> None:
    """A child process forked by a user's layer may end with an exception, which runs the trainer's cleanup code."""
    job = jobs(HERE, HERE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork in a process with threads
        child = os.fork()
    if child == 0:
        job.watches[1].close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    job.watches[0].activity.enter(WAITING)
    assert [line[:15] for line in job.reported(1)] == ["dptrain: rank 1"]


@pytest.mark.slow
def test_surviving_ranks_can_start_a_new_watch_of_themselves(jobs: Callable[..., Job]) -> None:
    before = jobs(HERE, HERE, HERE)
    before.close()
    job = jobs(HERE, HERE)
    for watch in job.watches:
        watch.activity.enter("computing", 1)
    assert [line[:15] for line in job.reported(2)] == ["dptrain: rank 0", "dptrain: rank 1"]
    assert before.lines == []


@pytest.mark.slow
def test_ranks_of_several_hosts_reach_each_other_by_their_addresses(
    jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first candidate does not answer. Of the others, this machine may have only the loopback address.
    addresses = local_addresses() or ["127.0.0.1"]
    monkeypatch.setattr(watch_module, "local_addresses", lambda: ["192.0.2.77", *addresses])
    job = jobs("left", "right")
    job.watches[0].activity.enter(WAITING, 5)
    job.watches[1].activity.enter("writing a checkpoint", 5)
    [line] = job.reported(1)
    assert "rank 1 on right" in line
    assert "writing a checkpoint in step 5, has made no progress" in line


@pytest.mark.slow
def test_ranks_behind_a_firewall_are_reported_as_never_heard(
    jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "local_addresses", list)
    job = jobs("left", "right")
    for watch in job.watches:
        watch.activity.enter(WAITING)
    lines = job.reported(2)
    assert len(lines) == 2  # each side reports the other
    assert all("has sent nothing for" in line for line in lines)


@pytest.mark.slow
def test_a_single_process_opens_no_socket_and_reports_a_stall_but_never_ends() -> None:
    lines: list[str] = []
    ends: list[int] = []
    watch = Watch(Communicator(), limit=0.4, abort=0.1, report=lines.append, end=ends.append)
    watch.activity.enter("computing", 9)
    time.sleep(1.2)
    assert watch._socket is None
    watch.close()
    [line] = lines
    assert f"rank 0 on {HERE} (process {os.getpid()}), computing in step 9, has made no progress" in line
    assert "a forked worker is stopped" in line
    assert ends == []


@pytest.mark.slow
def test_lines_go_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(Communicator(), limit=0.2, abort=0)
    time.sleep(0.5)
    watch.close()
    assert capsys.readouterr().err.startswith("dptrain: rank 0 on ")


def suspended(lines: Any, ready: Any, finish: Any) -> None:
    job = Job(HERE, HERE, HERE, limit=2)
    for watch in job.watches:
        watch.activity.enter("computing", 1)
    ready.set()
    finish.wait(30)
    lines.extend(job.lines)
    job.close()


@pytest.mark.slow
def test_after_a_suspension_of_the_whole_job_no_rank_is_reported() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        lines, ready, finish = manager.list(), manager.Event(), manager.Event()
        process = context.Process(target=suspended, args=(lines, ready, finish))
        process.start()
        try:
            assert ready.wait(30)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(2.2)
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(1.6)  # the watchers have checked again, and the limit has not passed since
            finish.set()
            process.join(30)
            assert (process.exitcode, list(lines)) == (0, [])
        finally:
            process.kill()
            process.join()


@pytest.mark.slow
def test_a_watcher_that_was_stopped_gives_the_others_time_to_be_heard_again(
    jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs(HERE, HERE)
    for watch in job.watches:
        watch.activity.enter(WAITING)
    time.sleep(0.3 * LIMIT)
    monkeypatch.setattr(job.watches[1], "_destinations", [])
    time.sleep(0.3 * LIMIT)  # so that datagrams on their way arrive
    clock = time.monotonic
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(monotonic=lambda: clock() + 100))
    time.sleep(0.6 * LIMIT)
    assert job.lines == []


@pytest.mark.parametrize(
    ("hosts", "watchers"),
    [
        ("a", [0]),
        ("aaaaaa", [0, 1, 2, 3]),
        ("aaaabbbb", [0, 1, 2, 4]),
        ("aabbccddee", [0, 2, 4, 6]),
        ("abababab", [0, 1, 2, 3]),
        ("aaaaaaab", [0, 1, 2, 7]),
    ],
)
def test_watchers_are_on_as_many_hosts_as_possible(hosts: str, watchers: list[int]) -> None:
    assert watchers_of(hosts) == watchers


@pytest.mark.mpi
@pytest.mark.alone
def test_only_the_stalled_rank_is_reported_and_in_time(tmp_path: Path) -> None:
    job = mpirun(own_mpi(), 3, PROGRAMS / "watched_ranks.py", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    began = {int(step): float(when) for when, step in lines_of(job.stdout, "stalls")}
    stalls = [(float(when), line) for when, line in lines_of(job.stdout, "reported") if "continued after" not in line]
    assert len(stalls) == len(began) == 3, job.stdout
    for step, (when, line) in enumerate(stalls):
        rank, found = [(0, "has been silent"), (1, "has been silent"), (1, "no progress")][step]
        assert line.startswith(f"dptrain: rank {rank} on {HERE} (process {pid_of(rank, tmp_path)})")
        assert f"loading data in step {step}" in line
        assert found in line
        assert when - began[step] < LIMIT + 2


@pytest.mark.mpi
@pytest.mark.alone
def test_a_job_with_a_stopped_rank_ends_and_leaves_nothing_behind(tmp_path: Path) -> None:
    rank = 0
    try:
        job = mpirun(own_mpi(), 3, PROGRAMS / "watched_ranks.py", str(rank), cwd=tmp_path, timeout=30)
        assert job.returncode != 0, job.stderr  # 76, but MPICH may return that of a rank that it has killed
        assert f"dptrain: error: rank {rank} on {HERE} (process {pid_of(rank, tmp_path)})" in job.stdout
        until = time.monotonic() + 5  # mpirun may return before the kernel has ended the stopped rank
        while time.monotonic() < until and any(is_alive(pid_of(other, tmp_path)) for other in range(3)):
            time.sleep(0.02)
        assert [other for other in range(3) if is_alive(pid_of(other, tmp_path))] == []
    finally:
        for file in tmp_path.glob("pid-*"):
            if is_alive(int(file.read_text())):
                os.kill(int(file.read_text()), signal.SIGKILL)


def lines_of(text: str, kind: str) -> list[list[str]]:
    """Time and text of the lines of a kind, in the order of time."""
    return sorted(line.split(" ", 2)[1:] for line in text.splitlines() if line.startswith(kind))


def pid_of(rank: int, folder: Path) -> int:
    return int((folder / f"pid-{rank}").read_text())
