"""launch/slurm.sh as Slurm would run it, on one machine: signal before the limit, checkpoint, requeue, and on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fault_runs import LAST_STEP, alone, fault_data, final_sha256, job, words
from launch_runs import CHECKOUT
from mpi_runs import own_mpi, python_of

SCRIPT = CHECKOUT / "launch" / "slurm.sh"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a job, and an scontrol that writes down what it is asked; the file it writes to."""
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
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_near_its_limit_saves_is_requeued_and_goes_on(
    number: signal.Signals, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", str(python_of(own_mpi())))
    data, run_dir = fault_data(tmp_path / "set"), tmp_path / "run"
    command = ["bash", str(SCRIPT), *words(data, run_dir)]
    with job(command, run_dir) as first:
        first.wait_until_training(2)
        first.process.send_signal(number)
        status, _, err = first.end()
    assert status == 75, err
    assert slurm.read_text() == "requeue 4711\n"
    assert first.newest_step() < LAST_STEP
    assert (run_dir / "checkpoints" / f"step-{first.newest_step():08d}.h5").exists()
    with job(command, run_dir) as second:  # as when its turn comes again
        status, _, err = second.end()
    assert status == 0, err
    assert slurm.read_text() == "requeue 4711\n"
    with job(alone(words(data, tmp_path / "whole")), tmp_path / "whole") as whole:
        assert whole.end()[0] == 0
    assert final_sha256(run_dir) == final_sha256(tmp_path / "whole")


@pytest.mark.mpi
def test_a_job_without_a_run_folder_is_refused(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", str(python_of(own_mpi())))
    with job(["bash", str(SCRIPT), "data/cifar10"], tmp_path / "run") as started:
        status, _, err = started.end()
    assert status == 2
    assert "give train a --run-dir" in err
    assert not slurm.exists()
