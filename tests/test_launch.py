"""python -m launch: its command line, what it prints, what it returns."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from launch_runs import CHECKOUT, only_line, run_launch


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--", "train", "data"], "-n/--ranks"),
        (["-n", "0", "--", "train", "data"], "found '0'"),
        (["-n", "two", "--", "train", "data"], "found 'two'"),
        (["-n", "2"], "found nothing there"),
        (["-n", "2", "--"], "found nothing there"),
        (["-n", "2", "train", "data"], "found 'train' before it"),
        (["-n", "2", "--dry-ruin", "--", "train"], "did you mean '--dry-run'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str], expected: str) -> None:
    done = run_launch(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    line = only_line(done.stderr)
    assert line.startswith("launch: error: ")
    assert expected in line


def test_flags_after_the_dashes_belong_to_the_trainer(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun("mpirun (Open MPI) 5.0.11")
    trainer = ["train", "my data", "-n", "--dry-run", "--", "x"]
    done = run_launch("-n", "2", "--mpirun", mpirun, "--dry-run", "--", *trainer)
    assert done.returncode == 0
    words = shlex.split(only_line(done.stdout))
    assert mpirun in words
    assert words[-9:] == [sys.executable, "-m", "dptrain", *trainer]


@pytest.mark.parametrize(("job", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_status_of_the_job_is_returned(fake_mpirun: Callable[..., str], job: str, status: int) -> None:
    mpirun = fake_mpirun("mpirun (Open MPI) 5.0.11", job)
    done = run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data")
    assert done.returncode == status
    assert mpirun in only_line(done.stderr)  # the command, nothing else


def test_the_job_sees_the_thread_variables(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun("HYDRA build details:", 'echo "$OPENBLAS_NUM_THREADS $OMP_NUM_THREADS"')
    done = run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data", OMP_NUM_THREADS="6")
    assert done.stdout == "1 1\n"


@pytest.mark.mpi
def test_the_whole_command_starts_dptrain_on_real_ranks() -> None:
    done = run_launch("-n", "2", "--", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--batch-size" in done.stdout


def test_a_terminal_gets_its_cursor_back_whatever_became_of_the_ranks(fake_mpirun: Callable[..., str]) -> None:
    """The bar hides the cursor; ranks that mpirun kills cannot show it again."""
    path = fake_mpirun("mpirun (Open MPI) 5.0.11", "printf '\\033[?25l'; kill -9 $$")
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "-n", "1", "--mpirun", path, "--", "train", "x"],
        cwd=CHECKOUT,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    written = os.read(ours, 1000)
    os.close(ours)
    assert done.returncode == 128 + signal.SIGKILL
    assert written.endswith(b"\x1b[?25h")
