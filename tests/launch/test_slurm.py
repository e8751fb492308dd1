"""launch/slurm.sh on one machine, as Slurm runs it: a signal before the limit, a checkpoint, a requeue, a resume."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from fault_runs import LAST_STEP, fault_data, final_sha256, job, undisturbed_sha256, words
from launch_runs import CHECKOUT
from mpi_runs import own_mpi, python_of

SCRIPT = CHECKOUT / "launch" / "slurm.sh"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the environment of a Slurm job with an scontrol that logs its arguments; returns the log."""
    asked = tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$*" >>{asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    return asked


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.once)])
def test_a_signalled_job_saves_and_only_usr1_requeues_it(
    number: signal.Signals, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1 announces the time limit; SIGTERM is what scancel sends."""
    monkeypatch.setenv("PYTHON", str(python_of(own_mpi())))
    data, run_dir = fault_data(tmp_path / "set"), tmp_path / "run"
    command = ["bash", str(SCRIPT), *words(data, run_dir)]
    with job(command, run_dir) as first:
        first.wait_until_training(2)
        first.process.send_signal(number)
        status, _, err = first.end()
    assert status == 75, err
    assert first.newest_step() < LAST_STEP
    assert (run_dir / "checkpoints" / f"step-{first.newest_step():08d}.h5").exists()
    if number == signal.SIGTERM:
        assert not slurm.exists()
        assert "slurm.sh: cancelled: status 75, not requeued" in err
        return
    assert slurm.read_text() == "requeue 4711\n"
    with job(command, run_dir) as second:  # requeued
        status, _, err = second.end()
    assert status == 0, err
    assert slurm.read_text() == "requeue 4711\n"
    assert final_sha256(run_dir) == undisturbed_sha256(data, tmp_path / "whole")


@pytest.mark.parametrize("status", [0, 1, 2, 70, 75, 76, 137, 255])
def test_a_status_that_a_retry_may_fix_is_requeued_up_to_a_limit(status: int, slurm: Path, tmp_path: Path) -> None:
    """PYTHON is a stand-in that ends with the status."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHON": str(python), **variables}
        return subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60)

    done = run(SLURM_RESTART_COUNT="19")
    assert done.returncode == status
    assert slurm.exists() == (status > 2)
    assert f"slurm.sh: status {status}: the job is requeued" in done.stderr or status <= 2
    slurm.unlink(missing_ok=True)
    done = run(SLURM_RESTART_COUNT="20")
    assert done.returncode == status
    assert not slurm.exists()
    assert f"status {status} after 20 requeues: not requeued" in done.stderr or status <= 2
    run(SLURM_RESTART_COUNT="20", MAX_REQUEUES="21")
    assert slurm.exists() == (status > 2)


@pytest.mark.mpi
@pytest.mark.once
def test_a_job_without_a_run_folder_is_refused(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", str(python_of(own_mpi())))
    with job(["bash", str(SCRIPT), "data/cifar10"], tmp_path / "run") as started:
        status, _, err = started.end()
    assert status == 2
    assert "--max-restarts needs a run folder" in err
    assert not slurm.exists()
