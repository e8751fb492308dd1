"""dptrain.parallel.pool: shards in parallel on forked processes, their errors, and their deaths."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selection import quick_first

from dptrain.arrays.memory import Array, Workspace
from dptrain.errors import DataError, DptrainError
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import ShardProcesses, ShardThreads, ShardWork, Worker, make_pool, shared_zeros
from dptrain.system.failures import failure
from dptrain.system.signals import ENDING


class Squares(ShardWork[tuple[int, int, float]]):
    """Where a shard was computed, its square, and a number from shared memory; writes the shard to shared memory."""

    def __init__(self) -> None:
        self.given, self.written = shared_zeros(1), shared_zeros(8)

    def prepare(self, power: int) -> int:
        return power

    def compute(self, shard: int, prepared: int, workspace: Workspace) -> tuple[int, int, float]:
        self.written[shard] = shard + 1
        return os.getpid(), shard**prepared, float(self.given[0])


class Fails(ShardWork[int]):
    """Raises for some shards."""

    def __init__(self, errors: dict[int, BaseException]) -> None:
        self.errors = errors

    def compute(self, shard: int, prepared: Any, workspace: Workspace) -> int:
        if shard in self.errors:
            raise self.errors[shard]
        return shard


class UnpicklableError(Exception):
    """Cannot be unpickled from its arguments."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(left + right)


@pytest.fixture
def squares() -> Squares:
    return Squares()


@pytest.fixture
def pool(squares: Squares) -> Iterator[ShardProcesses]:
    with closing(ShardProcesses(3, [squares])) as made:
        yield made


def alive(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Any, seconds: float = 10) -> bool:
    """Whether the condition becomes true within the time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_results_come_in_the_order_of_the_shards_from_as_many_processes(pool: ShardProcesses, squares: Squares) -> None:
    for power in (2, 3):
        found = pool.map(squares, range(8), power)
        assert [value for _, value, _ in found] == [shard**power for shard in range(8)]
    processes = [process for process, _, _ in found]
    assert len(set(processes)) == 3
    assert processes == sorted(processes, key=processes.index)  # a contiguous block each
    assert processes[0] == os.getpid()
    assert pool.map(squares, [], 2) == []
    assert len(pool.map(squares, [5], 2)) == 1


def test_shared_memory_is_seen_both_ways_after_the_fork(pool: ShardProcesses, squares: Squares) -> None:
    for number in (4.5, -1.0):
        squares.given[0] = number
        squares.written.fill(0)
        assert {value for _, _, value in pool.map(squares, range(8), 2)} == {number}
        assert squares.written.tolist() == list(range(1, 9))


def test_each_process_keeps_its_own_workspace() -> None:
    class Where(ShardWork[tuple[int, int]]):
        def compute(self, shard: int, prepared: Any, workspace: Workspace) -> tuple[int, int]:
            array: Array = workspace.array("test", "calls", (1,), zeroed=True)
            array += 1
            return os.getpid(), int(array[0])

    work = Where()
    with closing(ShardProcesses(2, [work])) as pool:
        calls = pool.map(work, range(4)) + pool.map(work, range(4))
    assert sorted(count for _, count in calls) == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("failing", [[1], [3], [1, 3], [2, 3]])
def test_the_error_of_the_first_failed_shard_is_raised_and_the_pool_stays_usable(failing: list[int]) -> None:
    work = Fails({shard: DataError(f"shard {shard} is broken") for shard in failing})
    with closing(ShardProcesses(2, [work])) as pool:
        with pytest.raises(DataError) as caught:
            pool.map(work, range(4))
        assert str(caught.value) == f"shard {failing[0]} is broken"
        assert pool.map(work, [0, 0, 0]) == [0, 0, 0]


def test_an_unexpected_error_has_the_traceback_of_the_worker() -> None:
    work = Fails({3: ZeroDivisionError("by zero")})
    with closing(ShardProcesses(2, [work])) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.map(work, range(4))
    assert "in compute" in caught.value.__notes__[0]


def test_an_error_of_the_callers_own_shard_is_raised_as_it_is() -> None:
    error = ZeroDivisionError("by zero")
    work = Fails({0: error})
    with closing(ShardProcesses(2, [work])) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.map(work, range(4))
    assert caught.value is error
    assert not hasattr(error, "__notes__")


def test_a_layer_that_exits_in_a_worker_raises_system_exit() -> None:
    work = Fails({3: SystemExit(3)})
    with closing(ShardProcesses(2, [work])) as pool, pytest.raises(SystemExit, match="3") as caught:
        pool.map(work, range(4))
    assert "in compute" in caught.value.__notes__[0]


def test_an_error_that_cannot_be_pickled_is_reported_by_its_last_line_and_its_traceback() -> None:
    work = Fails({3: UnpicklableError("left", "right")})
    with closing(ShardProcesses(2, [work])) as pool, pytest.raises(RuntimeError, match=r"Error: leftright$") as caught:
        pool.map(work, range(4))
    assert "in compute" in caught.value.__notes__[0]


def test_an_error_in_the_preparation_is_raised() -> None:
    class Unprepared(Squares):
        def prepare(self, power: int) -> int:
            raise DataError("not prepared")

    work = Unprepared()
    with closing(ShardProcesses(2, [work])) as pool, pytest.raises(DataError, match="not prepared"):
        pool.map(work, range(4), 2)


def test_work_created_after_the_fork_is_refused(pool: ShardProcesses) -> None:
    with pytest.raises(ValueError, match="is not in list"):
        pool.map(Squares(), range(3), 2)


def test_a_killed_worker_is_reported_with_its_shards() -> None:
    class Dies(ShardWork[int]):
        def compute(self, shard: int, prepared: Any, workspace: Workspace) -> int:
            if shard == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return os.getpid()

    work = Dies()
    with closing(ShardProcesses(2, [work])) as pool:
        first, second = pool.map(work, [0, 1])
        assert first != second
        with pytest.raises(
            DptrainError, match=rf"forked worker {second}, which computed shards 2 to 3, died \(Killed\)"
        ):
            pool.map(work, range(4))
        with pytest.raises(DptrainError, match=rf"forked worker {second}.*Killed"):  # the same again
            pool.map(work, range(4))


def test_close_ends_the_processes_even_while_they_compute() -> None:
    work = Squares()
    pool = ShardProcesses(3, [work])
    workers = {process for process, _, _ in pool.map(work, range(3), 2)} - {os.getpid()}
    assert len(workers) == 2
    pool.close()
    assert not any(alive(process) for process in workers)


PARENT = """
import os, signal, sys, time
from dptrain.errors import DptrainError
from dptrain.parallel.pool import ShardWork
from dptrain.parallel.pool import ShardProcesses

class Work(ShardWork[int]):
    def compute(self, shard, prepared, workspace):
        {compute}
        return os.getpid()

work = Work()
{then}
"""
WAITS = """pool = ShardProcesses(3, [work])
print(*pool.map(work, range(3)), flush=True)
time.sleep(60)"""


def parent(folder: Path, compute: str, then: str, **options: Any) -> subprocess.Popen[str]:
    """A process that runs `then`, with work whose shards run `compute`; its output is not a terminal."""
    (folder / "parent.py").write_text(PARENT.format(compute=compute, then=then), encoding="utf-8")
    return subprocess.Popen([sys.executable, folder / "parent.py"], stdout=subprocess.PIPE, text=True, **options)


@quick_first("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    with parent(tmp_path, "pass", WAITS) as started:
        assert started.stdout is not None
        parent_pid, *workers = map(int, started.stdout.readline().split())
        assert all(alive(worker) for worker in workers)
        os.kill(parent_pid, number)
    assert eventually(lambda: not any(alive(worker) for worker in workers))


def test_a_stopped_worker_ends_with_its_parent(tmp_path: Path) -> None:
    with parent(tmp_path, "pass", WAITS) as started:
        assert started.stdout is not None
        parent_pid, *workers = map(int, started.stdout.readline().split())
        os.kill(workers[0], signal.SIGSTOP)
        os.kill(parent_pid, signal.SIGKILL)
    assert eventually(lambda: not any(alive(worker) for worker in workers))


@pytest.mark.slow
def test_a_worker_whose_parent_died_computes_no_further_shard(tmp_path: Path) -> None:
    """Its block takes 40 s, a shard 0.2 s."""
    then = """pool = ShardProcesses(2, [work])
print(pool._workers[0].process.pid, flush=True)
pool.map(work, range(400))"""
    with parent(tmp_path, "time.sleep(0.2)", then) as started:
        assert started.stdout is not None
        worker = int(started.stdout.readline())
        time.sleep(0.5)
        started.kill()
    assert eventually(lambda: not alive(worker), seconds=5)


@pytest.mark.slow
def test_text_that_a_shard_prints_in_a_worker_is_not_lost(tmp_path: Path) -> None:
    then = """pool = ShardProcesses(3, [work])
pool.map(work, range(6))
pool.close()"""
    with parent(tmp_path, "print('shard', shard)", then) as started:
        output, _ = started.communicate(timeout=60)
    assert sorted(output.splitlines()) == [f"shard {shard}" for shard in range(6)]


def test_ctrl_c_while_workers_are_forked_is_not_lost(tmp_path: Path) -> None:
    """The signal arrives during each fork, where Python would discard it; the workers must ignore it."""
    then = """signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may ignore it
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    pool = ShardProcesses(3, [work])
except KeyboardInterrupt:
    print("interrupted")"""
    with parent(tmp_path, "pass", then, stderr=subprocess.PIPE) as started:
        output, errors = started.communicate(timeout=60)
    assert (started.returncode, output, errors) == (0, "interrupted\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_while_workers_are_forked_ends_the_run_and_leaves_no_worker(
    number: signal.Signals, tmp_path: Path
) -> None:
    then = f"""from dptrain.health.interruption import AskedToEndError, SignalInterruption
os.register_at_fork(before=lambda: os.kill(os.getpid(), {int(number)}))
try:
    with SignalInterruption(os._exit):
        ShardProcesses(3, [work])
except AskedToEndError as asked:
    print(asked)
    print(*(child.name for child in __import__("multiprocessing").active_children()))"""
    with parent(tmp_path, "pass", then, stderr=subprocess.PIPE) as started:
        output, errors = started.communicate(timeout=60)
    assert (started.returncode, output, errors) == (0, f"{number.name}\n\n", "")


def test_a_dead_worker_is_an_error_even_if_sigchld_is_ignored(tmp_path: Path) -> None:
    then = """signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pool = ShardProcesses(2, [work])
try:
    pool.map(work, range(2))
except DptrainError as error:
    print(error)"""
    with parent(tmp_path, "shard == 1 and os.abort()", then) as started:
        output, _ = started.communicate(timeout=60)
    assert "which computed shards 1 to 1, died (exit status None)" in output


def test_a_fork_that_fails_is_an_error_and_leaves_no_process(squares: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = ShardProcesses._fork
    started: list[Worker] = []

    def second_fails(self: ShardProcesses) -> Worker:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(fork(self))
        return started[0]

    monkeypatch.setattr(ShardProcesses, "_fork", second_fails)
    with pytest.raises(BlockingIOError) as caught:
        ShardProcesses(3, [squares])
    assert "fewer --threads" in failure(caught.value)[0]
    (process,) = (worker.process for worker in started)
    assert process.pid is not None
    assert not alive(process.pid)


def _kind_of_pool(_: int) -> str:
    with closing(make_pool(2, [Squares()], Communicator())) as made:
        return type(made).__name__


def test_a_worker_that_may_not_have_children_uses_threads() -> None:
    with multiprocessing.get_context("fork").Pool(1) as workers:
        assert workers.map(_kind_of_pool, [0]) == ["ShardThreads"]


@quick_first("number", ENDING)
def test_workers_leave_signals_to_their_parent(number: signal.Signals, pool: ShardProcesses, squares: Squares) -> None:
    for process in {process for process, _, _ in pool.map(squares, range(3), 2)} - {os.getpid()}:
        os.kill(process, number)
    assert [value for _, value, _ in pool.map(squares, range(3), 2)] == [0, 1, 4]


def test_shards_run_on_processes_without_mpi_and_on_threads_with_mpi(squares: Squares) -> None:
    class UnderMPI(Communicator):
        uses_mpi = True

    kinds = []
    for size, communicator in ((2, Communicator()), (2, UnderMPI()), (1, Communicator())):
        with closing(make_pool(size, [squares], communicator)) as pool:
            kinds.append((type(pool), pool.size))
    assert kinds == [(ShardProcesses, 2), (ShardThreads, 2), (ShardThreads, 1)]


def test_shared_zeros_are_float32_zeros_of_any_length() -> None:
    for length in (0, 1, 1000):
        array = shared_zeros(length)
        assert array.dtype == np.float32
        assert array.tolist() == [0.0] * length
        array += 1
