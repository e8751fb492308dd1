"""python -m launch: its command line, its output and its status."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, MPICH, OPEN_MPI, ends, only_line, run_launch

from launch.__main__ import main

pytestmark = pytest.mark.slow  # starts many processes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--", "train", "data"], "-n/--ranks"),
        (["-n", "0", "--", "train", "data"], "found '0'"),
        (["-n", "two", "--", "train", "data"], "found 'two'"),
        (["-n", "2"], "found nothing after --"),
        (["-n", "2", "--"], "found nothing after --"),
        (["-n", "2", "train", "data"], "found train without -- before it; for example: "),
        (["-n", "2", "train", "data", "--epochs", "1"], "found train without -- before it; for example: "),
        (["-n", "2", "set"], "unknown argument 'set'; write dptrain's command line after --"),
        (["-n", "2", "--dry-ruin", "--", "train"], "did you mean '--dry-run'?"),
        (["-n", "3", "--hosts", "a:1,b:1", "--", "train", "data"], "room for 2 ranks"),
        (["--hosts", "", "--", "train", "data"], "--hosts: found ''"),
        (["-n", "2", "--target", "mars", "--", "train", "data"], "'mars'"),
        (["-n", "2", "--max-restarts", "-1", "--", "train", "data"], "found '-1'"),
        (["-n", "2", "--max-restarts", "3", "--", "train", "data"], "--run-dir"),
        (["-n", "2", "--max-restarts", "3", "--", "eval", "x", "data"], "found the command 'eval'"),
        (["-n", "2", "--elastic", "--", "eval", "x", "data"], "found the command 'eval'"),
        (["-n", "2", "--min-ranks", "1", "--", "train", "data", "--run-dir", "x"], "add --max-restarts"),
        (["-n", "2", "--max-restarts", "1", "--min-ranks", "3", "--", "train", "--run-dir=x"], "--min-ranks is 3"),
        (["-n", "2", "--max-restarts", "1", "--min-ranks", "0", "--", "train", "--run-dir=x"], "found '0'"),
    ],
)
def test_a_wrong_command_line_is_a_one_line_error_with_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert only_line(err).startswith("launch: error: ")
    assert expected in err


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
def test_elastic_is_passed_to_mpirun_and_trainer(fake_mpirun: Callable[..., str], arguments: list[str]) -> None:
    words = dry_words(OPEN_MPI, fake_mpirun, *arguments)
    assert "--with-ft ulfm" in " ".join(words[: words.index("-n")])
    assert words[-3:] == ["train", "data", "--elastic"]


def test_a_job_is_not_elastic_by_default(fake_mpirun: Callable[..., str]) -> None:
    words = dry_words(OPEN_MPI, fake_mpirun, "--", "train", "data", "--elastic", "--no-elastic")
    assert "--with-ft" not in words


@pytest.mark.parametrize(
    ("version", "found"), [("mpirun (Open MPI) 4.1.4", "mpirun (Open MPI) 4.1.4"), (MPICH, "MPICH")]
)
def test_elastic_without_open_mpi_5_is_an_error_that_suggests_restarts(
    fake_mpirun: Callable[..., str], version: str, found: str
) -> None:
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(version), "--elastic", "--", "train", "data")
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert f"found {found};" in line
    assert "--max-restarts" in line


def test_a_dry_run_prints_the_first_attempt_only(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000007.h5").touch()
    trainer = ["train", "data", "--run-dir", str(tmp_path)]
    words = dry_words(OPEN_MPI, fake_mpirun, "--max-restarts", "2", "--min-ranks", "1", "--", *trainer)
    assert words[-10:] == ["-n", "2", sys.executable, "-P", "-m", "dptrain", *trainer]


@pytest.mark.parametrize(
    ("job", "status", "reason"),
    [
        ("exit 7", 7, ""),
        ("kill -9 $$", 137, "mpirun was killed by SIGKILL"),
        ("exit 0", 70, "the run has not reported its end"),
    ],
)
def test_an_end_without_a_record_is_a_failure_with_a_reason_in_one_line(
    fake_mpirun: Callable[..., str], job: str, status: int, reason: str
) -> None:
    """Found in the field: without --max-restarts nothing was printed, and 255 was called a kill by "signal 127"."""
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "eval", "data")
    assert done.returncode == status
    assert f"launch: the job ended with status {status} after " in only_line(done.stderr)
    assert reason in done.stderr


@pytest.mark.parametrize("returncode", [0, 137])
def test_a_run_that_reports_success_has_succeeded_for_any_status_of_mpirun(
    fake_mpirun: Callable[..., str], returncode: int
) -> None:
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, f"{ends(0)}; exit {returncode}"), "--", "eval", "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_error_that_the_run_has_printed_is_not_printed_twice(fake_mpirun: Callable[..., str]) -> None:
    job = f"echo 'dptrain: error: X' >&2; {ends(1, 'X')}; exit 0"
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "train", "data")
    assert (done.returncode, done.stderr) == (1, "dptrain: error: X\n")


def test_the_record_of_another_attempt_does_not_count(fake_mpirun: Callable[..., str]) -> None:
    job = f'DPTRAIN_LAUNCHER="0123456789abcdef@${{DPTRAIN_LAUNCHER#*@}}"; {ends(0)}'
    done = run_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "train", "data")
    assert done.returncode == 70
    assert "has not reported its end" in only_line(done.stderr)


NOTICE = f"""{"-" * 74}
prterun noticed that process rank 1 with PID 17802 on node vm exited on
signal 9 (Killed).
{"-" * 74}
"""


def test_verbose_shows_the_command_and_the_notices_of_mpirun_otherwise_one_line_is_shown(
    fake_mpirun: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "notice").write_text(NOTICE)
    mpirun = fake_mpirun(OPEN_MPI, f"cat {tmp_path / 'notice'} >&2; exit 137")
    assert "rank 1 on vm was killed by SIGKILL" in only_line(
        run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data").stderr
    )
    verbose = run_launch("-n", "2", "--mpirun", mpirun, "--verbose", "--", "train", "data").stderr
    assert NOTICE in verbose
    assert f"{mpirun} " in verbose.splitlines()[0]


def test_a_notice_that_is_the_only_explanation_is_shown(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    notice = NOTICE.replace("prterun noticed that process rank 1", "MPI_ABORT was invoked on rank 1")
    (tmp_path / "notice").write_text(notice)
    mpirun = fake_mpirun(OPEN_MPI, f"cat {tmp_path / 'notice'} >&2; exit 9")
    done = run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data")
    assert done.stderr.startswith(notice)


@pytest.mark.parametrize("missing", [[1], [2], [0, 1, 2]], ids=str)
def test_a_job_succeeds_without_the_standard_streams(
    fake_mpirun: Callable[..., str], tmp_path: Path, missing: list[int]
) -> None:
    """The record does not need these streams."""
    mpirun = fake_mpirun(OPEN_MPI, f"echo text; {ends(0)}; touch {tmp_path}/done")
    closing = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in missing)
    command = shlex.join([sys.executable, "-m", "launch", "-n", "2", "--mpirun", mpirun, "--", "train", "data"])
    assert subprocess.run(f"{command} {closing}", shell=True, cwd=CHECKOUT, timeout=60, check=False).returncode == 0
    assert (tmp_path / "done").exists()


def test_a_failure_is_reported_although_sigchld_was_ignored(fake_mpirun: Callable[..., str]) -> None:
    """Found in the field: a supervisor that ignores SIGCHLD made every failed job return 0."""
    mpirun = fake_mpirun(OPEN_MPI, "kill -9 $$")
    done = subprocess.run(
        [sys.executable, "-m", "launch", "-n", "2", "--mpirun", mpirun, "--", "train", "data"],
        cwd=CHECKOUT,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 137
    assert "mpirun was killed by SIGKILL" in only_line(done.stderr)


def test_mpirun_starts_with_default_signals_also_if_the_launcher_ignores_some(
    fake_mpirun: Callable[..., str],
) -> None:
    """mpirun gets signals from the launcher only, which must be able to end it."""
    mpirun = fake_mpirun(OPEN_MPI, f"grep -E 'Sig(Blk|Ign)' /proc/self/status; {ends(0)}")

    def disturb() -> None:
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM, signal.SIGALRM])

    done = subprocess.run(
        [sys.executable, "-m", "launch", "-n", "2", "--mpirun", mpirun, "--", "train", "data"],
        cwd=CHECKOUT,
        preexec_fn=disturb,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [int(line.split()[1], 16) for line in done.stdout.splitlines()] == [0, 0], done.stdout


def test_the_job_sees_the_thread_variables(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun("HYDRA build details:", 'echo "$OPENBLAS_NUM_THREADS $OMP_NUM_THREADS"')
    done = run_launch("-n", "2", "--mpirun", mpirun, "--", "train", "data", OMP_NUM_THREADS="6")
    assert done.stdout == "1 1\n"


@pytest.mark.mpi
def test_the_whole_command_starts_dptrain_on_real_ranks() -> None:
    done = run_launch("-n", "2", "--", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--batch-size" in done.stdout


def test_a_view_that_killed_ranks_have_left_is_removed(fake_mpirun: Callable[..., str]) -> None:
    path = fake_mpirun("mpirun (Open MPI) 5.0.11", "printf '\\033[J\\nbars\\n\\033[3A\\r\\n'; kill -9 $$")
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
    assert b"bars" in written
    assert written.endswith(b"\r\x1b[J")


@pytest.mark.parametrize(("command", "status"), [("eval", 1), ("train", 0)])
def test_output_that_cannot_be_written_is_an_error_if_it_is_the_result(
    command: str, status: int, fake_mpirun: Callable[..., str]
) -> None:
    """Found in the field: the launcher returned 0 for `eval` on a full disk, without a message."""
    mpirun = fake_mpirun(OPEN_MPI, f"echo figures; {ends(0)}")
    words = [sys.executable, "-m", "launch", "-n", "2", "--mpirun", mpirun, "--", command, "x"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("standard output cannot be written" in done.stderr) == (status != 0)
