"""dptrain.parallel.watch: which ranks a watcher reports, when, and which it never reports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import pytest

from dptrain.health.activity import WAITING
from dptrain.parallel.watch import Status, Watcher

LIMIT = 10.0
INTERVAL = 0.5


class Job:
    """Ranks 0, 1, ... of which 4 watch, on a simulated clock. `lines` and `ends` start with the watcher."""

    def __init__(self, ranks: int = 4, abort: float = 0) -> None:
        self.now = 1000.0
        self.ranks = range(ranks)
        self.stopped: Collection[int] = ()
        self.lines: list[tuple[int, float, str]] = []
        self.ends: list[tuple[int, float, int]] = []
        names = [f"rank {rank} on node{rank} (process {100 + rank})" for rank in self.ranks]

        def watcher(rank: int) -> Watcher:
            def report(line: str) -> None:
                self.lines.append((rank, self.now, line))

            def end(status: int) -> None:
                self.ends.append((rank, self.now, status))

            return Watcher(rank, names, self.ranks[:4], LIMIT, abort, report, end, self.now)

        self.watchers = [watcher(rank) for rank in self.ranks[:4]]

    def run(self, seconds: float, status_of: Callable[[int], Status] | None = None) -> None:
        """Ranks that are not stopped send a status (computing, or that of `status_of`), and the watchers check them."""
        for _ in range(int(seconds / INTERVAL)):
            self.now += INTERVAL
            statuses = [status_of(rank) if status_of else Status(rank, "computing", 7, 0.1) for rank in self.running]
            for watcher in (self.watchers[rank] for rank in self.running if rank < 4):
                for status in statuses:
                    watcher.hear(status, self.now)
                watcher.judge(self.now)

    @property
    def running(self) -> Iterable[int]:
        return [rank for rank in self.ranks if rank not in self.stopped]

    def assert_only_end(self, rank: int, at: float, within: float) -> None:
        """Only the watcher `rank` has ended the job, at the time `at`, give or take `within` seconds."""
        ((watcher, ended, status),) = self.ends
        assert (watcher, status) == (rank, 76)
        assert ended == pytest.approx(at, abs=within)

    @property
    def texts(self) -> list[str]:
        return [line for _, _, line in self.lines]


@pytest.mark.parametrize("stopped", [{0}, {1}, {5}, {0, 1}, {2, 3}, {0, 1, 2}, {0, 5}], ids=str)
def test_a_stopped_rank_is_reported_once_by_the_lowest_remaining_watcher(stopped: set[int]) -> None:
    job = Job(ranks=6)
    job.run(5)
    job.stopped = stopped
    since = job.now
    job.run(4 * LIMIT)
    assert [line[:38] for line in job.texts] == [
        f"dptrain: rank {rank} on node{rank} (process {100 + rank})" for rank in sorted(stopped)
    ]
    assert {watcher for watcher, _, _ in job.lines} == {min(set(job.ranks) - stopped)}
    assert all(time - since <= LIMIT + 2 for _, time, _ in job.lines)
    assert all("computing in step 7" in line for line in job.texts)


@pytest.mark.parametrize("later", [INTERVAL, LIMIT + 2])
def test_when_the_reporting_watcher_is_stopped_too_the_next_one_reports_both(later: float) -> None:
    job = Job()
    job.run(1)
    job.stopped = {2}
    job.run(later)
    job.stopped = {2, 0}
    job.run(2 * LIMIT)
    assert sorted(line[9:15] for watcher, _, line in job.lines if watcher != 0) == ["rank 0", "rank 2"]
    assert {watcher for watcher, _, _ in job.lines} <= {0, 1}


def test_a_rank_that_continues_is_reported_with_the_seconds() -> None:
    job = Job()
    job.run(5)
    job.stopped = {1}
    job.run(15)
    job.stopped = ()
    job.run(5)
    assert job.texts[1:] == ["dptrain: rank 1 on node1 (process 101) continued after 16 s"]  # 15.5: last heard before
    job.stopped = {1}
    job.run(15)
    assert len(job.lines) == 3  # another episode


def test_the_step_of_the_ranks_that_wait_is_reported_with_a_silent_rank() -> None:
    job = Job()
    job.run(5)
    job.stopped = {1}  # it has made two more steps since its last datagram
    since = job.now
    job.run(LIMIT + 2, lambda rank: Status(rank, WAITING, 9, job.now - since))
    [line] = job.texts
    assert "last heard computing in step 7 (others are in step 9), has been silent" in line


def stuck_in(phase: str, rank: int, job: Job) -> Callable[[int], Status]:
    since = job.now

    def status_of(other: int) -> Status:
        return Status(other, phase if other == rank else WAITING, 3, job.now - since)

    return status_of


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_without_progress_is_reported_but_not_the_ranks_that_wait_for_it(rank: int) -> None:
    job = Job()
    job.run(LIMIT + 2, stuck_in("loading data", rank, job))
    [(watcher, _, line)] = job.lines
    assert watcher == 0
    assert f"rank {rank} on node{rank} (process {100 + rank}), loading data in step 3, has made no progress" in line


def test_a_rank_that_makes_progress_is_never_reported() -> None:
    job = Job()
    since = job.now
    job.run(5 * LIMIT, lambda rank: Status(rank, "evaluating", 3, 1) if rank == 0 else waiting(rank, job.now - since))
    assert job.lines == []


def waiting(rank: int, seconds: float) -> Status:
    return Status(rank, WAITING, 3, seconds)


def test_ranks_that_all_wait_for_each_other_are_reported_in_one_line_and_the_job_ends() -> None:
    job = Job(abort=20)
    since = job.now
    job.run(5 * LIMIT, lambda rank: waiting(rank, job.now - since))
    assert "all ranks have waited for each other in step 3 for 10 s" in job.texts[0]
    assert job.texts[1].startswith("dptrain: error: all ranks")
    job.assert_only_end(0, since + LIMIT + 20, within=2)
    job.run(1)
    assert job.texts[2:] == [f"dptrain: all ranks continued after {job.now - INTERVAL - since:.0f} s"]


def test_when_a_rank_is_stopped_while_all_wait_they_are_not_reported_as_continuing() -> None:
    job = Job()
    since = job.now
    job.run(LIMIT + 2, lambda rank: waiting(rank, job.now - since))
    job.stopped = {2}
    job.run(LIMIT + 2, lambda rank: waiting(rank, job.now - since))
    assert [line[:15] for line in job.texts] == ["dptrain: all ra", "dptrain: rank 2"]


def test_a_rank_stopped_in_a_collective_is_reported_and_not_the_ranks_that_wait_for_it() -> None:
    job = Job()
    job.run(1)
    job.stopped = {2}
    since = job.now
    job.run(3 * LIMIT, lambda rank: waiting(rank, job.now - since))
    assert [line[:15] for line in job.texts] == ["dptrain: rank 2"]


def test_the_job_ends_once_after_abort_seconds_and_only_by_the_reporter() -> None:
    job = Job(abort=20)
    job.run(5)
    job.stopped = {0}
    since = job.now
    job.run(LIMIT + 19)
    assert job.ends == []
    assert "the job ends in 20 s if that does not change (--stall-abort)" in job.texts[0]
    job.run(10)
    job.assert_only_end(1, since + LIMIT + 20, within=2)
    assert job.texts[-1].startswith("dptrain: error: rank 0 on node0 (process 100)")


def test_the_job_does_not_end_when_the_rank_continues_in_time_or_abort_is_zero() -> None:
    job, patient = Job(abort=20), Job(abort=0)
    for each in (job, patient):
        each.run(5)
        each.stopped = {1}
        each.run(LIMIT + 15)
        each.stopped = ()
        each.run(1)
        each.stopped = {1}
        each.run(LIMIT + 15)
    patient.run(100)
    assert (job.ends, patient.ends) == ([], [])
    assert "ends" not in patient.texts[0]


def test_silence_while_the_watcher_itself_was_stopped_does_not_count() -> None:
    job = Job()
    job.run(5)
    job.now += 100
    for watcher in job.watchers:
        watcher.restart(job.now, 2 * INTERVAL)
    for watcher in job.watchers:  # an old status from the socket
        watcher.hear(Status(2, "loading data", 7, 50), job.now)
        watcher.judge(job.now)
    job.stopped = {1}  # the rank continues a little later
    job.run(5)
    job.stopped = ()
    job.run(5)
    assert job.lines == []
    job.stopped = {1}
    job.run(LIMIT + 2)
    assert [line[:15] for line in job.texts] == ["dptrain: rank 1"]


def test_a_watcher_that_was_stopped_reports_a_stall_again_before_it_ends_the_job() -> None:
    job = Job(abort=20)
    job.run(5)
    job.stopped = {1}
    job.run(LIMIT + 2)
    job.now += 100
    for watcher in job.watchers:
        watcher.restart(job.now, 2 * INTERVAL)
    since = job.now
    job.run(LIMIT - 1)
    assert len(job.lines) == 1
    job.run(24)
    job.assert_only_end(0, since + LIMIT + 20, within=1)
    assert job.texts[1][:38] == job.texts[0][:38]


def test_a_rank_that_was_never_heard_is_not_reported_as_silent_and_does_not_end_the_job() -> None:
    job = Job(abort=5)
    job.stopped = {3}
    since = job.now
    job.run(5 * LIMIT, lambda rank: waiting(rank, job.now - since))  # for rank 3, which may be computing
    [(watcher, _, line)] = job.lines
    assert (watcher, job.ends) == (0, [])
    assert "rank 3 on node3 (process 103) has sent nothing for" in line
    assert "is UDP blocked between its host and that of rank 0?" in line


def test_a_rank_that_has_ended_is_not_reported_even_if_its_datagram_is_late() -> None:
    job = Job()
    job.run(1)
    job.run(0.5, lambda rank: Status(rank, "computing", 7, 0, ended=rank == 2))
    job.run(0.5)
    job.stopped = {2}
    job.run(3 * LIMIT)
    assert job.lines == []


def test_after_a_watcher_has_ended_the_next_one_reports() -> None:
    job = Job()
    job.run(5)
    job.stopped = {3}
    since = job.now
    job.run(LIMIT - 1)
    job.run(0.5, lambda rank: Status(rank, "computing", 7, 0, ended=rank == 0))
    job.stopped = {0, 3}
    job.run(LIMIT)
    assert [(watcher, line[:15]) for watcher, _, line in job.lines] == [(1, "dptrain: rank 3")]
    assert job.lines[0][1] - since <= LIMIT + 2
