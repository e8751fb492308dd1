"""launch.supervise: which attempts are restarted, on how many ranks, and from which checkpoint."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, HASTY, MPICH, OPEN_MPI, ends, run_launch
from mpi_runs import dptrain
from training_runs import flags, packed

from launch.supervise import MOST_IN_VAIN, Restarts

pytestmark = pytest.mark.slow  # starts many processes


class Supervised:
    """A launcher of failing jobs: `run` gives it a line of shell, in which $n is the number of the attempt.

    Each attempt logs a step, if the job does not begin with ":".
    """

    def __init__(self, fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
        self.fake_mpirun = fake_mpirun
        self.run_dir, self._seen = tmp_path / "run", tmp_path / "seen"

    def run(self, job: str, *options: str, version: str = OPEN_MPI, more: str = "") -> subprocess.CompletedProcess[str]:
        step = f"""mkdir -p {self.run_dir}/checkpoints; echo '{{"event": "step"}}' >>{self.run_dir}/metrics.jsonl; """
        job = job if job.startswith(":") else step + job
        script = f'echo "$@" >> {self._seen}; n=$(wc -l < {self._seen}); {job}'
        mpirun = self.fake_mpirun(version, script)
        trainer = ["train", "data", "--run-dir", str(self.run_dir), *more.split()]
        return subprocess.run(
            [sys.executable, "-c", HASTY, "-n", "4", "--mpirun", mpirun, *options, "--", *trainer],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def commands(self) -> list[list[str]]:
        """The words after mpirun of every attempt."""
        return [shlex.split(line) for line in self._seen.read_text().splitlines()]

    @property
    def ranks(self) -> list[int]:
        return [int(words[words.index("-n") + 1]) for words in self.commands]


@pytest.fixture
def supervised(fake_mpirun: Callable[..., str], tmp_path: Path) -> Supervised:
    return Supervised(fake_mpirun, tmp_path)


def test_a_failed_job_is_restarted_until_it_succeeds(supervised: Supervised) -> None:
    done = supervised.run(f"[ $n -ge 3 ] || kill -9 $$; {ends(0)}", "--max-restarts", "3")
    assert done.returncode == 0
    assert len(supervised.commands) == 3
    reports = [line for line in done.stderr.splitlines() if line.startswith("launch: ")]
    assert [line.split(" after ")[0] for line in reports] == [
        "launch: attempt 1 on 4 ranks ended with status 137",
        "launch: restarting in 0.01 s on 4 ranks from the beginning (restart 1 of 3)",
        "launch: attempt 2 on 4 ranks ended with status 137",
        "launch: restarting in 0.01 s on 4 ranks from the beginning (restart 2 of 3)",
        "launch: attempt 3 on 4 ranks ended with status 0",
    ]
    assert reports[0].endswith(" s: mpirun was killed by SIGKILL")


def test_the_number_of_restarts_is_limited(supervised: Supervised) -> None:
    done = supervised.run("exit 76", "--max-restarts", "2")
    assert done.returncode == 76
    assert len(supervised.commands) == 3


@pytest.mark.parametrize(
    ("job", "status"),
    [(ends(0), 0), ("exit 2", 2), (f"{ends(75)}; exit 75", 75), (f"{ends(1, 'the loss is nan')}; exit 1", 1)],
)
def test_a_permanent_failure_is_not_restarted(supervised: Supervised, job: str, status: int) -> None:
    done = supervised.run(job, "--max-restarts", "5")
    assert done.returncode == status
    assert len(supervised.commands) == 1


@pytest.mark.parametrize("job", ["exit 1", "exit 0", f"{ends(70, 'rank 1 failed', retry=True)}; exit 70"])
def test_a_failure_that_a_retry_may_fix_is_restarted(supervised: Supervised, job: str) -> None:
    done = supervised.run(job, "--max-restarts", "1")
    assert len(supervised.commands) == 2
    assert done.returncode != 0


def test_an_attempt_that_makes_no_step_does_not_count_as_a_restart(supervised: Supervised) -> None:
    """For example, a host cannot be reached for some time."""
    job = f": ; [ $n -ge 4 ] || exit 255; {ends(0)}"
    done = supervised.run(job, "--max-restarts", "1", "--min-ranks", "1")
    assert done.returncode == 0
    assert supervised.ranks == [4, 4, 4, 4]
    pauses = [line.partition("restarting in ")[2] for line in done.stderr.splitlines() if "restarting" in line]
    assert pauses == [
        f"{seconds} s on 4 ranks from the beginning (no step was made: {number} of 8)"
        for number, seconds in enumerate(("0.01", "0.02", "0.04"), 1)
    ]


def test_the_number_of_attempts_without_a_step_is_limited(supervised: Supervised) -> None:
    done = supervised.run(": ; exit 255", "--max-restarts", "2")
    assert done.returncode == 255
    assert len(supervised.commands) == 1 + MOST_IN_VAIN


def test_an_error_that_dptrain_reports_before_the_first_step_counts_as_a_restart(supervised: Supervised) -> None:
    supervised.run(f": ; {ends(70, 'rank 1 failed', retry=True)}; exit 70", "--max-restarts", "2")
    assert len(supervised.commands) == 3


def test_a_rank_that_dies_before_the_first_step_counts_as_a_restart(supervised: Supervised) -> None:
    notice = "prterun noticed that process rank 1 with PID 3 on node vm exited on signal 9 (Killed)."
    done = supervised.run(f": ; echo '{notice}' >&2; exit 137", "--max-restarts", "2")
    assert len(supervised.commands) == 3
    assert done.returncode == 137


def test_without_restarts_nothing_is_repeated(supervised: Supervised) -> None:
    supervised.run(": ; exit 255")
    assert len(supervised.commands) == 1


def test_pauses_grow_up_to_a_minute_and_start_again_after_a_step() -> None:
    restarts = Restarts(most=3, ranks=2, min_ranks=1)

    def seconds(made_steps: bool, begun: bool) -> float | None:
        found = restarts.pause(made_steps, begun)
        return None if found is None else found[0]

    assert [seconds(False, False) for _ in range(MOST_IN_VAIN)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert seconds(False, False) is None
    assert seconds(True, False) == 1
    assert (restarts.counted, restarts.ranks) == (1, 1)
    assert [seconds(False, True), seconds(False, True)] == [1, 2]
    assert seconds(True, True) is None


def test_a_killed_rank_of_mpich_is_reported_with_status_128_plus_the_signal(supervised: Supervised) -> None:
    notice = "echo 'YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)'; exit 9"
    done = supervised.run(notice, "--max-restarts", "1", version=MPICH)
    assert done.returncode == 137
    assert done.stdout.count("EXIT STRING") == 2  # passed on
    assert "a rank was killed by SIGKILL" in done.stderr


def test_each_restart_has_one_rank_fewer_down_to_min_ranks(supervised: Supervised) -> None:
    done = supervised.run("exit 70", "--max-restarts", "3", "--min-ranks", "2")
    assert supervised.ranks == [4, 3, 2, 2]
    assert "restarting in 0.01 s on 3 ranks" in done.stderr


def test_without_min_ranks_the_number_of_ranks_stays(supervised: Supervised) -> None:
    supervised.run("exit 70", "--max-restarts", "1")
    assert supervised.ranks == [4, 4]


def test_a_restart_resumes_from_the_newest_checkpoint_for_any_resume_flag(supervised: Supervised) -> None:
    folder = supervised.run_dir / "checkpoints"
    job = f"[ $n -lt 2 ] || mkdir -p {folder}; [ $n -lt 2 ] || touch {folder}/step-00001200.h5; exit 70"
    done = supervised.run(job, "--max-restarts", "2", more="--resume other.h5")
    first, second, third = supervised.commands
    assert first[-2:] == second[-2:] == ["--resume", "other.h5"]  # no checkpoint yet
    assert third == [*second, "--resume", "auto"]
    assert "on 4 ranks from the beginning (" in done.stderr
    assert "on 4 ranks from step 1,200 (" in done.stderr


def test_every_attempt_is_logged_in_the_run_folder(supervised: Supervised) -> None:
    folder = supervised.run_dir / "checkpoints"
    folder.mkdir(parents=True)
    failure = f"touch {folder}/step-00000007.h5; {ends(70, 'rank 1', retry=True)}; exit 70"
    job = f"[ $n -lt 2 ] || {{ {ends(0)}; exit 0; }}; {failure}"
    supervised.run(job, "--max-restarts", "3", "--min-ranks", "1")
    first, second = map(json.loads, (supervised.run_dir / "attempts.jsonl").read_text().splitlines())
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(first.pop("time")) < timedelta(minutes=1)
    assert 0 <= first.pop("seconds") < 60
    assert first == {"attempt": 1, "ranks": 4, "status": 70, "reason": "rank 1", "checkpoint_step": 7}
    assert (second["attempt"], second["ranks"], second["status"], second["reason"]) == (2, 3, 0, "")


def test_a_folder_without_a_run_stays_empty(supervised: Supervised) -> None:
    supervised.run_dir.mkdir()
    supervised.run(f": ; {ends(70, 'rank 1 failed', retry=True)}; exit 70", "--max-restarts", "1")
    assert not list(supervised.run_dir.iterdir())


def test_a_log_of_attempts_that_cannot_be_written_is_a_warning(supervised: Supervised) -> None:
    (supervised.run_dir / "checkpoints").mkdir(parents=True)
    (supervised.run_dir / "attempts.jsonl").mkdir()
    done = supervised.run(f"[ $n -lt 2 ] && exit 70; {ends(0)}", "--max-restarts", "1")
    assert done.returncode == 0
    assert f"launch: {supervised.run_dir / 'attempts.jsonl'}: cannot be written: Is a directory" in done.stderr


def test_a_log_of_attempts_that_is_a_link_is_not_followed(supervised: Supervised) -> None:
    (supervised.run_dir / "checkpoints").mkdir(parents=True)
    (supervised.run_dir / "attempts.jsonl").symlink_to(supervised.run_dir / "elsewhere")
    done = supervised.run("[ $n -lt 2 ] && exit 70; exit 0", "--max-restarts", "1")
    assert "attempts.jsonl: cannot be written: Too many levels of symbolic links" in done.stderr
    assert not (supervised.run_dir / "elsewhere").exists()


def test_without_restarts_no_attempts_are_logged(supervised: Supervised) -> None:
    supervised.run("exit 70")
    assert not (supervised.run_dir / "attempts.jsonl").exists()


DYING_MODEL = """
import os, signal, threading, time
from pathlib import Path
from dptrain.nn.zoo import linear

FOLDER = Path(os.environ["DYING_FOLDER"])

def checkpoints():
    return set((FOLDER / "run" / "checkpoints").glob("step-*.h5"))

def die_after_a_checkpoint(earlier):
    while checkpoints() <= earlier:
        time.sleep(0.001)
    (FOLDER / f"death-{time.time_ns()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)

def build(input_shape, classes):
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")
    if rank == "1" and len(list(FOLDER.glob("death-*"))) < int(os.environ["DYING_DEATHS"]):
        threading.Thread(target=die_after_a_checkpoint, args=[checkpoints()], daemon=True).start()
    return linear(input_shape, classes)
"""


@pytest.mark.mpi
def test_a_real_run_whose_ranks_are_killed_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING_MODEL)
    data, run_dir = packed(tmp_path / "data"), tmp_path / "run"
    changes = {"epochs": 6}
    undisturbed = dptrain(
        "train", *flags(data, tmp_path / "undisturbed", model="linear", **changes), "--json", cwd=tmp_path
    )
    trainer = ["train", *flags(data, run_dir, model=f"{tmp_path / 'dying.py'}:build", **changes), "--json"]
    done = run_launch(
        *("-n", "3", "--max-restarts", "2", "--min-ranks", "2", "--", *trainer),
        DYING_FOLDER=str(tmp_path),
        DYING_DEATHS="2",
    )
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(line) for line in (run_dir / "attempts.jsonl").read_text().splitlines()]
    assert [attempt["ranks"] for attempt in attempts] == [3, 2, 2]
    assert [attempt["status"] for attempt in attempts] == [137, 137, 0]
    assert "killed by SIGKILL" in attempts[0]["reason"]
    assert attempts[0]["checkpoint_step"] < attempts[1]["checkpoint_step"]
    ended, wanted = (json.loads(run.stdout.splitlines()[-1]) for run in (done, undisturbed))
    assert ended["params_sha256"] == wanted["params_sha256"]


def test_an_elastic_job_has_succeeded_only_if_it_reports_success(supervised: Supervised) -> None:
    """Its mpirun returns 0 also after the death of all ranks."""
    job = f"[ $n -lt 2 ] || {ends(0)}; exit 0"
    done = supervised.run(job, "--elastic", "--max-restarts", "3")
    assert done.returncode == 0
    assert len(supervised.commands) == 2
    assert "attempt 1 on 4 ranks ended with status 70" in done.stderr


def test_a_run_that_may_be_retried_is_reported_with_the_command_that_resumes_it(supervised: Supervised) -> None:
    folder = supervised.run_dir / "checkpoints"
    job = f"mkdir -p {folder}; touch {folder}/step-00000007.h5; kill -9 $$"
    done = supervised.run(job, more="--resume other.h5")
    command = shlex.split(done.stderr.splitlines()[-1])
    assert command[-6:] == ["--run-dir", str(supervised.run_dir), "--resume", "other.h5", "--resume", "auto"]
    assert command[command.index("-n") :][:3] == ["-n", "4", "--mpirun"]
