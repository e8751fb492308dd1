"""dptrain.parallel.pool: shards in parallel on threads, and a fair share of the cores for every rank of a host."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.arrays.memory import Workspace
from dptrain.errors import DataError
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import ShardThreads, ShardWork, fair_threads


class Task(ShardWork[Any]):
    """Computes what it is given."""

    def __init__(self, function: Callable[[int, Workspace], Any]) -> None:
        self.function = function

    def compute(self, shard: int, prepared: Any, workspace: Workspace) -> Any:
        return self.function(shard, workspace)


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_shards(threads: int) -> None:
    def slow_at_first(shard: int, workspace: Workspace) -> int:
        time.sleep(0.02 * (7 - shard) if shard > 3 else 0)
        return shard * shard

    pool = ShardThreads(threads)
    assert pool.map(Task(slow_at_first), [4, 5, 6, 1]) == [16, 25, 36, 1]
    assert pool.map(Task(slow_at_first), []) == []
    pool.close()


def test_prepared_data_is_computed_once_and_seen_by_all() -> None:
    class Prepares(ShardWork[tuple[int, int]]):
        prepared = 0

        def prepare(self, number: int) -> int:
            self.prepared += 1
            return number

        def compute(self, shard: int, prepared: int, workspace: Workspace) -> tuple[int, int]:
            return shard, prepared

    pool, work = ShardThreads(2), Prepares()
    assert pool.map(work, range(3), 7) == [(0, 7), (1, 7), (2, 7)]
    assert work.prepared == 1
    pool.close()


def test_shards_run_in_parallel_with_one_workspace_per_thread() -> None:
    meeting = threading.Barrier(3, timeout=10)  # passes only three shards at a time

    def where(shard: int, workspace: Workspace) -> tuple[int, Workspace]:
        meeting.wait()
        return threading.get_ident(), workspace

    pool = ShardThreads(3)
    seen = pool.map(Task(where), range(6)) + pool.map(Task(where), range(3))
    pool.close()
    threads = {thread for thread, _ in seen}
    pairs = {(thread, id(workspace)) for thread, workspace in seen}
    assert len(threads) == 3
    assert threading.get_ident() in threads
    assert len(pairs) == len({workspace for _, workspace in pairs}) == 3


def test_a_single_thread_is_that_of_the_caller_and_keeps_its_workspace() -> None:
    pool = ShardThreads(1)
    work = Task(lambda shard, workspace: (threading.get_ident(), workspace))
    seen = [pool.map(work, range(3)) for _ in range(2)]
    assert {thread for calls in seen for thread, _ in calls} == {threading.get_ident()}
    assert len({id(workspace) for calls in seen for _, workspace in calls}) == 1
    pool.close()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_error_of_the_first_failed_shard_is_raised_and_the_pool_stays_usable(threads: int) -> None:
    def fails(shard: int, workspace: Workspace) -> int:
        if shard == 1:
            time.sleep(0.05)
        if shard in (1, 3):
            raise DataError(f"shard {shard} is broken")
        return shard

    pool = ShardThreads(threads)
    with pytest.raises(DataError, match="shard 1 is broken"):
        pool.map(Task(fails), range(4))
    assert pool.map(Task(fails), [0, 2]) == [0, 2]
    pool.close()


def test_close_ends_the_threads() -> None:
    before = set(threading.enumerate())
    pool = ShardThreads(3)
    pool.map(Task(lambda shard, workspace: time.sleep(0.02)), range(3))
    started = set(threading.enumerate()) - before
    assert len(started) == 2  # the caller is the third
    pool.close()
    assert not any(thread.is_alive() for thread in started)


Place = tuple[str, frozenset[int]]  # a rank's host and the cores it may run on


class OneRank(Communicator):
    """A rank among ranks on known hosts and cores, in control groups with quotas."""

    def __init__(self, rank: int, places: list[Place], quotas: list[dict[str, float]]) -> None:
        self.rank, self.size = rank, len(places)
        self.everyone = [(*place, quota) for place, quota in zip(places, quotas, strict=True)]

    def allgather(self, value: Any) -> list[Any]:
        assert value == self.everyone[self.rank]
        return list(self.everyone)


def shares(places: list[Place], quotas: list[dict[str, float]] | None = None) -> list[int]:
    """`fair_threads` of every rank."""
    found, quotas = [], quotas or [{}] * len(places)
    with pytest.MonkeyPatch.context() as patch:
        for rank, (host, cores) in enumerate(places):
            patch.setattr(socket, "gethostname", lambda host=host: host)
            patch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
            patch.setattr("dptrain.parallel.pool.cpu_limits", lambda _, quota=quotas[rank]: quota)
            found.append(fair_threads(OneRank(rank, places, quotas)))
    return found


def cores(first: int, last: int) -> frozenset[int]:
    return frozenset(range(first, last + 1))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([("a", cores(0, 3))], [4]),
        ([("a", cores(0, 3))] * 2, [2, 2]),
        ([("a", cores(0, 3))] * 3, [1, 1, 1]),
        ([("a", cores(0, 1))] * 4, [1, 1, 1, 1]),  # more ranks than cores: still one thread
        ([("a", cores(0, 1)), ("a", cores(2, 3))], [2, 2]),  # bound by mpirun: no core is shared
        ([("a", cores(0, 3)), ("b", cores(0, 3))], [4, 4]),  # the same numbers on another host are other cores
        ([("a", cores(0, 7)), ("b", cores(0, 1)), ("a", cores(0, 7))], [4, 2, 4]),
        ([("a", cores(0, 3)), ("a", cores(0, 1))], [3, 1]),  # two cores alone and half of two
        ([("a", cores(0, 5))] * 3, [2, 2, 2]),  # six thirds are exactly two, but not in floating point
    ],
)
def test_each_core_is_shared_among_the_ranks_that_may_run_on_it(places: list[Place], expected: list[int]) -> None:
    assert shares(places) == expected


@given(
    places=st.lists(
        st.tuples(st.sampled_from("ab"), st.frozensets(st.integers(0, 7), min_size=1)), min_size=1, max_size=6
    )
)
def test_a_host_gets_no_more_threads_than_cores_except_one_per_rank(places: list[Place]) -> None:
    threads = shares(places)
    assert min(threads) >= 1
    for host in "ab":
        here = [(count, allowed) for count, (place, allowed) in zip(threads, places, strict=True) if place == host]
        assert all(count <= len(allowed) for count, allowed in here)
        if all(count > 1 for count, _ in here):
            assert sum(count for count, _ in here) <= len(frozenset().union(*(allowed for _, allowed in here)))
        for cores_of_rank in {allowed for _, allowed in here}:
            assert len({count for count, allowed in here if allowed == cores_of_rank}) == 1


HALF, TWO, FIVE = 0.5, 2.0, 5.0


@pytest.mark.parametrize(
    ("ranks", "quotas", "expected"),
    [
        (1, [{"job": TWO}], [2]),
        (1, [{"job": 1.5}], [1]),
        (1, [{"job": HALF}], [1]),  # still one thread
        (1, [{"job": 100.0}], [8]),
        (2, [{"job": FIVE}] * 2, [2, 2]),  # all ranks of the host together
        (2, [{"job": FIVE, "rank 0": TWO}, {"job": FIVE, "rank 1": FIVE}], [2, 2]),  # nested: the smallest counts
        (2, [{"rank 0": TWO}, {"rank 1": TWO}], [2, 2]),  # each rank in a separate group
        (2, [{"job": HALF}, {}], [1, 4]),
    ],
)
def test_a_quota_is_shared_among_the_ranks_in_its_group(
    ranks: int, quotas: list[dict[str, float]], expected: list[int]
) -> None:
    """Found in the field: in a container with 1.5 cores of a machine with 64, 64 threads were started."""
    assert shares([("a", cores(0, 7))] * ranks, quotas) == expected


def test_one_process_without_a_quota_gets_every_core_it_may_use(tmp_path: Path) -> None:
    assert fair_threads(Communicator(), root=tmp_path) == len(os.sched_getaffinity(0))
