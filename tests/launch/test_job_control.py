"""launch.signals: Ctrl-Z stops the whole job, and fg or bg continues it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, LOOP, OPEN_MPI, first_output, is_alive, ranks_of, start_launch, wait_until
from mpi_runs import python_of
from selection import quick_first
from training_runs import flags, packed


def state_of(process: int) -> str:
    """S, R, T (stopped), ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def is_sleeping_rank(process: int) -> bool:
    """Whether `sleep` has started in this process, with the environment of a rank."""
    folder = Path(f"/proc/{process}")
    return folder.joinpath("comm").read_text() == "sleep\n" and "_WORLD_RANK=" in folder.joinpath("environ").read_text()


# A stand-in for mpirun that has started two ranks, one of which has a worker.
RANKS = (
    f"OMPI_COMM_WORLD_RANK=0 sh -c 'sleep 30 & echo $! $$; wait' & OMPI_COMM_WORLD_RANK=1 sleep 30 & echo $!; {LOOP}"
)


@contextmanager
def stand_in(fake_mpirun: Callable[..., str]) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A launcher in a new process group of this session, like a job of a shell, and the processes of its ranks."""
    mpirun = fake_mpirun(OPEN_MPI, RANKS)
    process = start_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data", group=True)
    try:
        ranks = [int(word) for _ in range(2) for word in first_output(process).split()]
        # The shell prints a number after the fork; only the program that then starts has the environment of a rank.
        wait_until(lambda: [is_sleeping_rank(rank) for rank in ranks].count(True) == 2)
        yield process, ranks
    finally:
        for number in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        process.communicate(timeout=30)


@quick_first("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_a_stop_from_the_terminal_stops_ranks_and_launcher_until_they_are_continued(
    fake_mpirun: Callable[..., str], number: signal.Signals
) -> None:
    """Found in the field: Ctrl-Z stopped only the launcher, and the ranks continued training."""
    with stand_in(fake_mpirun) as (process, ranks):
        for _ in range(2):
            os.killpg(process.pid, number)
            wait_until(lambda: state_of(process.pid) == "T")
            wait_until(lambda: {state_of(rank) for rank in ranks} == {"T"})
            os.killpg(process.pid, signal.SIGCONT)
            wait_until(lambda: {state_of(each) for each in [process.pid, *ranks]} <= {"S", "R"})


def test_a_stop_while_mpirun_starts_the_ranks_stops_mpirun(fake_mpirun: Callable[..., str]) -> None:
    process = start_launch(
        *("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, f"echo $$; {LOOP}"), "--", "train", "data"), group=True
    )
    mpirun = int(first_output(process))

    def both_are(states: set[str]) -> bool:
        return {state_of(process.pid), state_of(mpirun)} <= states

    for number, states in ((signal.SIGTSTP, {"T"}), (signal.SIGCONT, {"S", "R"})):
        os.killpg(process.pid, number)
        wait_until(partial(both_are, states))
    process.terminate()
    process.communicate(timeout=30)


def test_a_stopped_job_that_is_asked_to_end_ends_when_it_is_continued(fake_mpirun: Callable[..., str]) -> None:
    """A shell's `kill %1` sends SIGTERM and SIGCONT."""
    with stand_in(fake_mpirun) as (process, ranks):
        os.killpg(process.pid, signal.SIGTSTP)
        wait_until(lambda: state_of(process.pid) == "T")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        process.wait(10)
        assert not [rank for rank in ranks if is_alive(rank)]


def test_nothing_is_left_of_a_stopped_job_whose_launcher_is_killed(fake_mpirun: Callable[..., str]) -> None:
    """mpirun is not stopped, and ends its ranks; this fake mpirun only shows that it can."""
    with stand_in(fake_mpirun) as (process, ranks):
        mpirun = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.killpg(process.pid, signal.SIGTSTP)
        wait_until(lambda: state_of(process.pid) == "T")
        process.kill()
        wait_until(lambda: not is_alive(mpirun))
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)


@pytest.mark.slow
def test_a_stop_in_an_orphaned_process_group_has_no_effect(fake_mpirun: Callable[..., str]) -> None:
    """Nobody could continue it: the kernel ignores such a stop, under `setsid` or a batch system."""
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, RANKS), "--", "train", "data")
    ranks = [int(word) for _ in range(2) for word in first_output(process).split()]
    process.send_signal(signal.SIGTSTP)
    time.sleep(0.3)
    wait_until(lambda: {state_of(each) for each in [process.pid, *ranks]} <= {"S", "R"})
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.alone
@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_a_real_run_is_stopped_and_continued_without_a_stall_report(mpi: str, tmp_path: Path) -> None:
    data, run_dir = packed(tmp_path / "data"), tmp_path / "run"
    trainer = flags(data, run_dir, epochs=100_000, checkpoint_every=5, log_every=1, stall_limit=1.0)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [python_of(mpi), "-m", "launch", "-n", "2", "--", "train", *trainer],
            cwd=CHECKOUT,
            stdout=subprocess.DEVNULL,
            stderr=log,
            process_group=0,
        )
    try:
        metrics = run_dir / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and len(metrics.read_bytes()) > 2000, 30)
        os.killpg(process.pid, signal.SIGTSTP)
        wait_until(lambda: state_of(process.pid) == "T")
        wait_until(lambda: {state_of(rank) for rank in ranks_of(run_dir)} == {"T"})  # a busy host may stop them later
        size = metrics.stat().st_size
        time.sleep(2.5)  # more than the stall limit
        assert metrics.stat().st_size == size
        os.killpg(process.pid, signal.SIGCONT)
        wait_until(lambda: metrics.stat().st_size > size + 2000, 30)
        process.terminate()
        assert process.wait(20) == 75
    finally:
        for number in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
    printed = (tmp_path / "log").read_text()
    assert "silent" not in printed
    assert "progress" not in printed
