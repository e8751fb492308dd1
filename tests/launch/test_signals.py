"""launch.signals: a first and a second signal, in every phase of a job."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import (
    CHECKOUT,
    LOOP,
    MPICH,
    OPEN_MPI,
    ends,
    first_output,
    is_alive,
    ranks_of,
    shared_memory_of,
    start_launch,
    start_training,
)
from training_runs import packed

from dptrain.system.signals import ENDING
from launch.cleanup import SESSION_BASE

pytestmark = pytest.mark.slow  # starts many processes

TRAPS = "trap 'exit 41' INT; trap 'exit 42' TERM; trap 'exit 43' USR1"
STATUS = {signal.SIGINT: 41, signal.SIGTERM: 42, signal.SIGUSR1: 43}
NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGQUIT: "Ctrl-\\ (SIGQUIT)"}


def signalled(mpirun: str, command: str, number: signal.Signals) -> tuple[int, str]:
    """Send a launcher a signal when its job is ready; returns its status and standard error."""
    process = start_launch("-n", "2", "--mpirun", mpirun, "--", command, "data")
    assert first_output(process) == "ready"
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    return process.returncode, printed


@pytest.mark.parametrize(
    ("version", "passed", "number"),
    [*((OPEN_MPI, signal.SIGUSR1, number) for number in ENDING), (MPICH, signal.SIGTERM, signal.SIGINT)],
)
def test_the_first_signal_asks_training_to_save_and_end(
    fake_mpirun: Callable[..., str], version: str, passed: signal.Signals, number: signal.Signals
) -> None:
    """Found in the field: the end of an ssh connection (SIGHUP) killed the run without a checkpoint."""
    status, printed = signalled(fake_mpirun(version, f"{TRAPS}; echo ready; {LOOP}"), "train", number)
    assert status == STATUS[passed]
    assert f"launch: {NAMES.get(number, number.name)}: saving a checkpoint, then ending the run; " in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_commands_are_ended(fake_mpirun: Callable[..., str], number: signal.Signals) -> None:
    status, printed = signalled(fake_mpirun(OPEN_MPI, f"{TRAPS}; echo ready; {LOOP}"), "eval", number)
    assert status == STATUS[signal.SIGINT if number == signal.SIGINT else signal.SIGTERM]
    assert f"launch: {NAMES.get(number, number.name)}: ending the job" in printed


def test_a_stopped_run_is_reported_with_the_signal_and_the_command_that_resumes_it(
    fake_mpirun: Callable[..., str],
) -> None:
    """Found in the field: Ctrl-C was reported as SIGUSR1, with mpirun's notices and a run folder in a cut line."""
    run_dir = "runs/it's new"
    end = ends(75, "stopped by SIGUSR1", by="SIGUSR1", checkpoint=f"{run_dir}/x.h5", run_dir=run_dir)
    mpirun = fake_mpirun(OPEN_MPI, f"end() {{ {end}; exit 75; }}; trap end USR1; echo ready; {LOOP}")
    status, printed = signalled(mpirun, "train", signal.SIGINT)
    assert status == 75
    first, stopped, resume, command = printed.splitlines()
    assert "SIGUSR1" not in printed
    assert first.startswith("launch: Ctrl-C (SIGINT): saving a checkpoint")
    assert stopped == f"launch: stopped by Ctrl-C (SIGINT): {run_dir}/x.h5 is saved"
    assert resume == "launch: resume with:"
    words = ["-m", "launch", "-n", "2", "--mpirun", mpirun, "--", "train", "data", "--run-dir", run_dir]
    assert shlex.split(command)[1:] == words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    fake_mpirun: Callable[..., str], number: signal.Signals
) -> None:
    """Found in the field: Ctrl-C that was meant for `tail` ended a job that a script had started with `&`."""
    mpirun = fake_mpirun(OPEN_MPI, f"{TRAPS}; echo ready; {LOOP}")
    command = [sys.executable, "-m", "launch", "-n", "2", "--mpirun", mpirun, "--", "train", "data"]
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    assert first_output(process) == "ready"
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    other = signal.SIGTERM if number != signal.SIGTERM else signal.SIGUSR1
    process.send_signal(other)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == STATUS[signal.SIGUSR1]
    assert printed.startswith(f"launch: {other.name}: ")


def test_signals_within_two_seconds_are_one_request(fake_mpirun: Callable[..., str]) -> None:
    """Found in the field: scancel sends SIGTERM to every process while the batch script's trap sends SIGUSR1."""
    mpirun = fake_mpirun(OPEN_MPI, f"trap 'sleep 1; exit 43' USR1; trap 'exit 42' TERM; echo ready; {LOOP}")
    process = start_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data")
    assert first_output(process) == "ready"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.1)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 43
    assert "at once\n" in printed
    assert "ending the job at once" not in printed


@pytest.mark.parametrize(("command", "status"), [("train", 75), ("eval", 128 + signal.SIGHUP)])
def test_a_signal_before_there_is_a_job_ends_the_launcher(tmp_path: Path, command: str, status: int) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\nkill -HUP $PPID; sleep 2; echo 'mpirun (Open MPI) 5.0.11'\n")
    mpirun.chmod(0o755)
    process = start_launch("-n", "2", "--mpirun", str(mpirun), "--", command, "data")
    _, printed = process.communicate(timeout=30)
    assert (process.returncode, printed.count("launch: stopped by SIGHUP")) == (status, 1)


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_nothing_is_left_of_a_real_run_whose_terminal_was_closed(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SESSION_BASE, str(tmp_path / "sessions"))
    (tmp_path / "sessions").mkdir()
    process, ranks = start_training(packed(tmp_path / "data"), tmp_path / "run")
    used = shared_memory_of(ranks)
    assert used
    process.send_signal(number)
    _, printed = process.communicate(timeout=15)
    assert process.returncode == 75, printed
    assert f"stopped by {NAMES.get(number, number.name)}: {tmp_path / 'run' / 'checkpoints'}" in printed
    assert not ranks_of(tmp_path / "run")
    assert not [rank for rank in ranks if is_alive(rank)]
    assert not list((tmp_path / "sessions").iterdir())
    assert not [path for path in used if path.exists()]


@pytest.mark.parametrize("version", [OPEN_MPI, MPICH])
@pytest.mark.parametrize(
    ("on_second", "status"), [("exit 42", 42), ("", 128 + signal.SIGKILL)], ids=["obeys", "does not"]
)
def test_a_second_signal_ends_the_job_at_once(
    fake_mpirun: Callable[..., str], version: str, on_second: str, status: int
) -> None:
    first, second = ("USR1", "TERM") if version == OPEN_MPI else ("TERM", "TERM")
    job = f"""trap "trap '{on_second}' {second}; echo saving" {first}; echo ready; {LOOP}"""
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(version, job), "--", "train", "data", hasty=True)
    assert first_output(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert first_output(process) == "saving"
    time.sleep(0.3)  # more than SAME_REQUEST
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == status
    assert time.monotonic() - started < 5
    assert "Ctrl-C (SIGINT): ending the job at once" in printed
    assert "ended at once by a second signal, Ctrl-C (SIGINT)" in printed


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


def test_after_a_signal_nothing_is_restarted(fake_mpirun: Callable[..., str]) -> None:
    end = ends(70, "rank 1 failed", retry=True)
    mpirun = fake_mpirun(OPEN_MPI, f"end() {{ {end}; exit 0; }}; trap end USR1; echo ready; {LOOP}")
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
    while "restarting" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert out == "attempt\n"
    assert errors == "launch: a signal ended the job before the restart\n"


@pytest.mark.mpi
def test_a_signal_ends_real_training_with_the_status_of_a_preempted_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process, ranks = start_training(packed(tmp_path / "data"), run_dir, "--max-restarts", "3")
    try:
        process.terminate()
        _, errors = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    assert not [rank for rank in ranks if is_alive(rank)]
    (line,) = (run_dir / "attempts.jsonl").read_text().splitlines()
    assert json.loads(line)["status"] == 75
