"""launch.signals: what a first and a second signal do, in every phase of a job."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import LOOP, MPICH, OPEN_MPI, first_output, is_alive, start_launch, start_training
from training_runs import packed

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
TELLS = "trap 'exit 41' INT; trap 'exit 42' TERM; trap 'exit 43' USR1"
STATUS = {signal.SIGINT: 41, signal.SIGTERM: 42, signal.SIGUSR1: 43}


def signalled(mpirun: str, command: str, number: signal.Signals) -> tuple[int, str]:
    """A launcher that gets a signal when its job has said that it is ready; its status, and what it told."""
    process = start_launch("-n", "2", "--mpirun", mpirun, "--", command, "data")
    assert first_output(process) == "ready"
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    return process.returncode, told


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("version", "passed"), [(OPEN_MPI, signal.SIGUSR1), (MPICH, signal.SIGTERM)])
def test_the_first_signal_asks_training_to_save_and_end(
    fake_mpirun: Callable[..., str], version: str, passed: signal.Signals, number: signal.Signals
) -> None:
    status, told = signalled(fake_mpirun(version, f"{TELLS}; echo ready; {LOOP}"), "train", number)
    assert status == STATUS[passed]
    assert f"launch: {number.name}: the run saves a checkpoint and ends; a second signal ends it at once\n" in told


@pytest.mark.parametrize("number", SIGNALS)
def test_other_commands_get_the_signal_itself(fake_mpirun: Callable[..., str], number: signal.Signals) -> None:
    status, told = signalled(fake_mpirun(OPEN_MPI, f"{TELLS}; echo ready; {LOOP}"), "eval", number)
    assert status == STATUS[number]
    assert f"launch: {number.name} passed on" in told


@pytest.mark.parametrize("version", [OPEN_MPI, MPICH])
@pytest.mark.parametrize(
    ("on_second", "status"), [("exit 42", 42), ("", 128 + signal.SIGKILL)], ids=["obeys", "does not"]
)
def test_a_second_signal_ends_the_job_at_once(
    fake_mpirun: Callable[..., str], version: str, on_second: str, status: int
) -> None:
    first, second = ("USR1", "TERM") if version == OPEN_MPI else ("TERM", "TERM")
    job = f"""trap "trap '{on_second}' {second}; echo saving" {first}; echo ready; {LOOP}"""
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(version, job), "--", "train", "data")
    assert first_output(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert first_output(process) == "saving"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == status
    assert time.monotonic() - started < 5
    assert "the job ends at once" in told


@pytest.mark.parametrize(
    ("version", "died"), [(OPEN_MPI, "kill -USR1 $$"), (OPEN_MPI, "exit 138"), (MPICH, "exit 143")]
)
def test_ranks_that_die_of_the_signal_before_they_handle_it_count_as_ended_by_it(
    fake_mpirun: Callable[..., str], version: str, died: str
) -> None:
    mpirun = fake_mpirun(version, f"trap 'trap - USR1; {died}' USR1 TERM; echo ready; {LOOP}")
    process = start_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data")
    assert first_output(process) == "ready"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 75


def test_after_a_signal_nothing_is_started_again(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, f"trap 'exit 70' USR1; echo ready; {LOOP}")
    trainer = ["train", "data", "--run-dir", "no/such/run"]
    process = start_launch("-n", "2", "--mpirun", mpirun, "--max-restarts", "5", "--", *trainer)
    assert first_output(process) == "ready"
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 70
    assert out == ""


def test_a_signal_between_two_attempts_ends_the_launcher(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, "echo attempt; exit 70")
    trainer = ["train", "data", "--run-dir", "no/such/run"]
    process = start_launch("-n", "2", "--mpirun", mpirun, "--max-restarts", "5", "--", *trainer)
    assert process.stderr is not None
    while "starting again" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    out, told = process.communicate(timeout=30)
    assert process.returncode == 75
    assert out == "attempt\n"
    assert told == "launch: a signal ended the job before it was started again\n"


@pytest.mark.mpi
def test_a_signal_ends_real_training_with_the_status_of_a_preempted_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process, ranks = start_training(packed(tmp_path / "data"), run_dir, "--max-restarts", "3")
    try:
        process.terminate()
        _, told = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 75, told
    assert not [rank for rank in ranks if is_alive(rank)]
    (line,) = (run_dir / "attempts.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == 75
