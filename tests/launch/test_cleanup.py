"""launch.cleanup: no process, shared memory or session folder remains after its job; nothing else is removed."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import (
    LOOP,
    OPEN_MPI,
    is_alive,
    run_launch,
    shared_memory_of,
    start_launch,
    start_training,
    wait_until,
)
from training_runs import packed

from dptrain.system.record import VARIABLE
from launch import cleanup
from launch.cleanup import LOCAL_BASE, SESSION_BASE, JobProcesses, no_leftovers, session_folder


@pytest.mark.parametrize("state", ["CONT", "STOP"], ids=["running", "stopped"])
def test_processes_that_outlive_mpirun_are_ended(fake_mpirun: Callable[..., str], state: str) -> None:
    job = f"trap '' TERM; setsid sleep 20 & kill -{state} $!; echo $!; exit 3"
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "train", "data")
    assert done.returncode == 3
    wait_until(lambda: not is_alive(int(done.stdout)))  # SIGKILL takes a moment


def test_processes_of_a_killed_mpirun_are_ended(fake_mpirun: Callable[..., str]) -> None:
    process = start_launch(
        "-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, f"sleep 20 & echo $$ $!; {LOOP}"), "--", "train", "data"
    )
    assert process.stdout is not None
    mpirun, rank = map(int, process.stdout.readline().split())
    os.kill(mpirun, signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL
    assert not is_alive(rank)


def test_a_process_of_another_job_is_not_killed() -> None:
    with subprocess.Popen(["sleep", "20"], env={VARIABLE: "another@1@x"}) as other:
        wait_until(lambda: JobProcesses("another").find() == [other.pid])
        with no_leftovers("mine"):
            pass
        assert other.poll() is None
        other.kill()


@pytest.mark.slow
def test_a_process_that_executes_a_program_at_this_moment_is_found(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nexec "$0"\n')
    program.chmod(0o755)
    with subprocess.Popen([program], env={VARIABLE: "mine@1@x"}) as process:
        found = [JobProcesses("mine").find() for _ in range(100)]
        process.kill()
    assert found == [[process.pid]] * 100


def test_a_process_without_any_variable_is_not_waited_for() -> None:
    with subprocess.Popen(["sleep", "20"], env={}) as other:
        started = time.monotonic()
        assert JobProcesses("mine").find() == []
        assert time.monotonic() - started < 5
        assert other.poll() is None
        other.kill()


def test_shared_memory_is_removed_unless_it_is_older_or_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "SHARED_MEMORY", tmp_path)
    earlier, left, of_open_mpi, in_use, foreign = (
        tmp_path / name for name in ("mpich_shm_1", "mpich_shm_2", "sm_segment.vm.0.1", "mpich_shm_3", "other_shm")
    )
    earlier.write_bytes(b"x")
    with no_leftovers("mine"):
        for path in (left, of_open_mpi, in_use, foreign):
            path.write_bytes(b"x")
        file = in_use.open("r+b")
        memory = mmap.mmap(file.fileno(), 0)
        file.close()
    assert set(tmp_path.iterdir()) == {earlier, in_use, foreign}
    memory.close()


@pytest.mark.mpi
@pytest.mark.parametrize("state", [signal.SIGCONT, signal.SIGSTOP], ids=["running", "stopped"])
def test_nothing_is_left_of_real_ranks_whose_mpirun_was_killed(state: signal.Signals, tmp_path: Path) -> None:
    process, ranks = start_training(packed(tmp_path / "data"), tmp_path / "run")
    try:
        used = shared_memory_of(ranks)
        assert used
        mpirun = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        for rank in ranks:
            os.kill(rank, state)
        os.kill(mpirun, signal.SIGKILL)
        process.communicate(timeout=15)
    finally:
        process.kill()
    # When mpirun has died, the kernel sends SIGHUP to stopped ranks: they may report a stop before they are killed.
    statuses = {128 + signal.SIGKILL} | ({75} if state == signal.SIGSTOP else set())
    assert process.returncode in statuses
    assert not [rank for rank in ranks if is_alive(rank)]
    assert not [path for path in used if path.exists()]


@pytest.mark.mpi
def test_real_ranks_end_with_a_killed_launcher(tmp_path: Path) -> None:
    process, ranks = start_training(packed(tmp_path / "data"), tmp_path / "run")
    process.kill()
    process.communicate(timeout=15)
    wait_until(lambda: not [rank for rank in ranks if is_alive(rank)])


def test_the_session_folder_exists_within_the_block_only(tmp_path: Path) -> None:
    with session_folder({SESSION_BASE: str(tmp_path)}) as variables:
        folder = Path(variables[LOCAL_BASE])
        assert [*tmp_path.iterdir()] == [folder]
        (folder / "ompi.1").mkdir()
    assert [*tmp_path.iterdir()] == []
