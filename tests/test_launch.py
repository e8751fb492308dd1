"""python -m launch: its command line, what it prints, what it returns."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, MPICH, OPEN_MPI, only_line, run_launch


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
        (["-n", "2", "--max-restarts", "-1", "--", "train", "data"], "found '-1'"),
        (["-n", "2", "--max-restarts", "3", "--", "train", "data"], "--run-dir"),
        (["-n", "2", "--max-restarts", "3", "--", "eval", "x", "data"], "found the command 'eval'"),
        (["-n", "2", "--elastic", "--", "eval", "x", "data"], "found the command 'eval'"),
        (["-n", "2", "--min-ranks", "1", "--", "train", "data", "--run-dir", "x"], "give --max-restarts"),
        (["-n", "2", "--max-restarts", "1", "--min-ranks", "3", "--", "train", "--run-dir=x"], "--min-ranks is 3"),
        (["-n", "2", "--max-restarts", "1", "--min-ranks", "0", "--", "train", "--run-dir=x"], "found '0'"),
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
    assert words[-10:] == [sys.executable, "-P", "-m", "dptrain", *trainer]


def dry_words(version: str, fake_mpirun: Callable[..., str], *arguments: str) -> list[str]:
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(version), "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return shlex.split(only_line(done.stdout))


@pytest.mark.parametrize(
    "arguments",
    [["--elastic", "--", "train", "data"], ["--", "train", "data", "--elastic"]],
    ids=["the launcher's flag", "the trainer's"],
)
def test_elastic_is_told_to_mpirun_and_trainer(fake_mpirun: Callable[..., str], arguments: list[str]) -> None:
    words = dry_words(OPEN_MPI, fake_mpirun, *arguments)
    assert "--with-ft ulfm" in " ".join(words[: words.index("-n")])
    assert words[-3:] == ["train", "data", "--elastic"]


def test_a_job_is_not_elastic_unasked(fake_mpirun: Callable[..., str]) -> None:
    words = dry_words(OPEN_MPI, fake_mpirun, "--", "train", "data", "--elastic", "--no-elastic")
    assert "--with-ft" not in words


@pytest.mark.parametrize(
    ("version", "found"), [("mpirun (Open MPI) 4.1.4", "mpirun (Open MPI) 4.1.4"), (MPICH, "MPICH")]
)
def test_elastic_elsewhere_is_an_error_that_names_the_other_way(
    fake_mpirun: Callable[..., str], version: str, found: str
) -> None:
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(version), "--elastic", "--", "train", "data")
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert f"is {found};" in line
    assert "--max-restarts" in line


def test_a_dry_run_prints_the_first_attempt_only(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000007.h5").touch()
    trainer = ["train", "data", "--run-dir", str(tmp_path)]
    words = dry_words(OPEN_MPI, fake_mpirun, "--max-restarts", "2", "--min-ranks", "1", "--", *trainer)
    assert words[-10:] == ["-n", "2", sys.executable, "-P", "-m", "dptrain", *trainer]


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
