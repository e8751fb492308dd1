"""dptrain.health.stalls: whom a watcher names, when, and what it never says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

import pytest

from dptrain.health.activity import WAITING
from dptrain.health.stalls import Status, Watcher

LIMIT = 10.0
INTERVAL = 0.5


class Job:
    """Ranks 0, 1, ... of which the first four watch, on a clock of its own. `lines` and `ends` by watcher."""

    def __init__(self, ranks: int = 4, abort: float = 0) -> None:
        self.now = 1000.0
        self.ranks = range(ranks)
        self.stopped: Collection[int] = ()
        self.lines: list[tuple[int, float, str]] = []
        self.ends: list[tuple[int, float, int]] = []
        names = [f"rank {rank} on node{rank} (process {100 + rank})" for rank in self.ranks]

        def watcher(rank: int) -> Watcher:
            def say(line: str) -> None:
                self.lines.append((rank, self.now, line))

            def end(status: int) -> None:
                self.ends.append((rank, self.now, status))

            return Watcher(rank, names, self.ranks[:4], LIMIT, abort, say, end, self.now)

        self.watchers = [watcher(rank) for rank in self.ranks[:4]]

    def go_on(self, seconds: float, tell: Callable[[int], Status | None] | None = None) -> None:
        """Ranks that are not stopped tell their status (computing, unless `tell` knows better); watchers judge."""
        for _ in range(int(seconds / INTERVAL)):
            self.now += INTERVAL
            statuses = [tell(rank) if tell else Status(rank, "computing", 7, 0.1) for rank in self.running]
            for watcher in (self.watchers[rank] for rank in self.running if rank < 4):
                for status in statuses:
                    if status is not None:
                        watcher.hear(status, self.now)
                watcher.judge(self.now)

    @property
    def running(self) -> Iterable[int]:
        return [rank for rank in self.ranks if rank not in self.stopped]

    def assert_only_end(self, rank: int, at: float, within: float) -> None:
        """One watcher has ended the job, that of `rank`, at a time that is right to `within` seconds."""
        ((found, ended, status),) = self.ends
        assert (found, status) == (rank, 76)
        assert ended == pytest.approx(at, abs=within)

    @property
    def texts(self) -> list[str]:
        return [line for _, _, line in self.lines]


@pytest.mark.parametrize("stopped", [{0}, {1}, {5}, {0, 1}, {2, 3}, {0, 1, 2}, {0, 5}], ids=str)
def test_a_stopped_rank_is_reported_once_by_the_lowest_remaining_watcher(stopped: set[int]) -> None:
    job = Job(ranks=6)
    job.go_on(5)
    job.stopped = stopped
    since = job.now
    job.go_on(4 * LIMIT)
    assert [line[:38] for line in job.texts] == [
        f"dptrain: rank {rank} on node{rank} (process {100 + rank})" for rank in sorted(stopped)
    ]
    assert {watcher for watcher, _, _ in job.lines} == {min(set(job.ranks) - stopped)}
    assert all(time - since <= LIMIT + 2 for _, time, _ in job.lines)
    assert all("computing in step 7" in line for line in job.texts)


@pytest.mark.parametrize("later", [INTERVAL, LIMIT + 2])
def test_when_the_reporting_watcher_is_stopped_too_the_next_one_reports_both(later: float) -> None:
    job = Job()
    job.go_on(1)
    job.stopped = {2}
    job.go_on(later)
    job.stopped = {2, 0}
    job.go_on(2 * LIMIT)
    assert sorted(line[9:15] for watcher, _, line in job.lines if watcher != 0) == ["rank 0", "rank 2"]
    assert {watcher for watcher, _, _ in job.lines} <= {0, 1}


def test_a_rank_that_continues_is_reported_with_the_seconds() -> None:
    job = Job()
    job.go_on(5)
    job.stopped = {1}
    job.go_on(15)
    job.stopped = ()
    job.go_on(5)
    assert job.texts[1:] == ["dptrain: rank 1 on node1 (process 101) continues after 16 s"]  # 15.5: last heard before
    job.stopped = {1}
    job.go_on(15)
    assert len(job.lines) == 3  # another episode


def test_the_step_of_the_ranks_that_wait_is_reported_with_a_silent_rank() -> None:
    job = Job()
    job.go_on(5)
    job.stopped = {1}  # it has made two more steps since its last datagram
    since = job.now
    job.go_on(LIMIT + 2, lambda rank: Status(rank, WAITING, 9, job.now - since))
    [line] = job.texts
    assert "last heard computing in step 7 (others are in step 9), has been silent" in line


def test_an_old_status_does_not_tell_in_which_step_the_others_are() -> None:
    """Two silent ranks: the step of the one must not be reported as that of those who wait for the other."""
    lines: list[str] = []
    watcher = Watcher(0, ["a", "b", "c"], [0], 10.0, 0.0, lines.append, lambda status: None, 0.0)
    for rank, step in ((0, 8), (1, 7), (2, 9)):
        watcher.hear(Status(rank, "computing", step, 0.0), 1.0)
    watcher.hear(Status(0, WAITING, 8, 0.0), 20.0)
    watcher.judge(20.0)
    assert [re.findall(r"in step \d", line) for line in lines] == [
        ["in step 7", "in step 8"],
        ["in step 9", "in step 8"],
    ]


def stuck_in(phase: str, rank: int, job: Job) -> Callable[[int], Status]:
    since = job.now

    def tell(other: int) -> Status:
        return Status(other, phase if other == rank else WAITING, 3, job.now - since)

    return tell


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_without_progress_is_named_but_not_those_who_wait_for_it(rank: int) -> None:
    job = Job()
    job.go_on(LIMIT + 2, stuck_in("loading data", rank, job))
    [(watcher, _, line)] = job.lines
    assert watcher == 0
    assert f"rank {rank} on node{rank} (process {100 + rank}), loading data in step 3, has made no progress" in line


def test_a_rank_that_makes_progress_is_never_reported() -> None:
    job = Job()
    since = job.now
    job.go_on(5 * LIMIT, lambda rank: Status(rank, "evaluating", 3, 1) if rank == 0 else waiting(rank, job.now - since))
    assert job.lines == []


def waiting(rank: int, seconds: float) -> Status:
    return Status(rank, WAITING, 3, seconds)


def test_ranks_that_all_wait_for_each_other_are_reported_in_one_line_and_the_job_ends() -> None:
    job = Job(abort=20)
    since = job.now
    job.go_on(5 * LIMIT, lambda rank: waiting(rank, job.now - since))
    assert "all ranks have waited for each other in step 3 for 10 s" in job.texts[0]
    assert job.texts[1].startswith("dptrain: error: all ranks")
    job.assert_only_end(0, since + LIMIT + 20, within=2)
    job.go_on(1)
    assert job.texts[2:] == [f"dptrain: all ranks continue after {job.now - INTERVAL - since:.0f} s"]


def test_when_a_rank_is_stopped_while_all_wait_they_are_not_reported_as_continuing() -> None:
    job = Job()
    since = job.now
    job.go_on(LIMIT + 2, lambda rank: waiting(rank, job.now - since))
    job.stopped = {2}
    job.go_on(LIMIT + 2, lambda rank: waiting(rank, job.now - since))
    assert [line[:15] for line in job.texts] == ["dptrain: all ra", "dptrain: rank 2"]


def test_a_rank_stopped_in_a_collective_is_reported_and_not_the_ranks_that_wait_for_it() -> None:
    job = Job()
    job.go_on(1)
    job.stopped = {2}
    since = job.now
    job.go_on(3 * LIMIT, lambda rank: waiting(rank, job.now - since))
    assert [line[:15] for line in job.texts] == ["dptrain: rank 2"]


def test_the_job_ends_once_after_abort_seconds_and_only_by_the_reporter() -> None:
    job = Job(abort=20)
    job.go_on(5)
    job.stopped = {0}
    since = job.now
    job.go_on(LIMIT + 19)
    assert job.ends == []
    assert "the job ends in 20 s unless that changes (--stall-abort)" in job.texts[0]
    job.go_on(10)
    job.assert_only_end(1, since + LIMIT + 20, within=2)
    assert job.texts[-1].startswith("dptrain: error: rank 0 on node0 (process 100)")


def test_the_job_does_not_end_when_the_rank_moves_in_time_or_abort_is_zero() -> None:
    job, patient = Job(abort=20), Job(abort=0)
    for each in (job, patient):
        each.go_on(5)
        each.stopped = {1}
        each.go_on(LIMIT + 15)
        each.stopped = ()
        each.go_on(1)
        each.stopped = {1}
        each.go_on(LIMIT + 15)
    patient.go_on(100)
    assert (job.ends, patient.ends) == ([], [])
    assert "nothing is done about it" in patient.texts[0]


def test_silence_while_the_watcher_itself_was_stopped_does_not_count() -> None:
    job = Job()
    job.go_on(5)
    job.now += 100
    for watcher in job.watchers:
        watcher.restart(job.now, 2 * INTERVAL)
    for watcher in job.watchers:  # what lay in the socket
        watcher.hear(Status(2, "loading data", 7, 50), job.now)
        watcher.judge(job.now)
    job.stopped = {1}  # it is continued a little later
    job.go_on(5)
    job.stopped = ()
    job.go_on(5)
    assert job.lines == []
    job.stopped = {1}
    job.go_on(LIMIT + 2)
    assert [line[:15] for line in job.texts] == ["dptrain: rank 1"]


def test_a_watcher_that_was_stopped_keeps_reported_stalls_and_does_not_end_the_job() -> None:
    job = Job(abort=20)
    job.go_on(5)
    job.stopped = {1}
    job.go_on(LIMIT + 2)
    job.now += 100
    for watcher in job.watchers:
        watcher.restart(job.now, 2 * INTERVAL)
    since = job.now
    job.go_on(18)
    assert len(job.lines) == 1
    job.go_on(4)
    job.assert_only_end(0, since + 20, within=1)


def test_a_rank_that_was_never_heard_is_not_called_silent_and_ends_nothing() -> None:
    job = Job(abort=5)
    job.stopped = {3}
    since = job.now
    job.go_on(5 * LIMIT, lambda rank: waiting(rank, job.now - since))  # for rank 3, which may well be at work
    [(watcher, _, line)] = job.lines
    assert (watcher, job.ends) == (0, [])
    assert "rank 0 receives nothing from rank 3 on node3 (process 103)" in line


def test_a_rank_that_has_ended_properly_is_not_missed_even_if_a_datagram_of_it_is_late() -> None:
    job = Job()
    job.go_on(1)
    job.go_on(0.5, lambda rank: Status(rank, "computing", 7, 0, ended=rank == 2))
    job.go_on(0.5)
    job.stopped = {2}
    job.go_on(3 * LIMIT)
    assert job.lines == []


def test_after_a_watcher_has_ended_the_next_one_reports() -> None:
    job = Job()
    job.go_on(5)
    job.stopped = {3}
    since = job.now
    job.go_on(LIMIT - 1)
    job.go_on(0.5, lambda rank: Status(rank, "computing", 7, 0, ended=rank == 0))
    job.stopped = {0, 3}
    job.go_on(LIMIT)
    assert [(watcher, line[:15]) for watcher, _, line in job.lines] == [(1, "dptrain: rank 3")]
    assert job.lines[0][1] - since <= LIMIT + 2
