"""launch.attempt: one attempt, with real processes and real ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, LOOP, OPEN_MPI, first_output, only_line, run_launch, start_launch, wait_until

from dptrain.system.cores import physical_cores
from launch.__main__ import rank_environment
from launch.cleanup import SESSION_BASE
from launch.targets import choose, find_mpirun


@pytest.mark.slow
def test_signals_of_a_terminal_do_not_reach_mpirun_directly(
    fake_mpirun: Callable[..., str],
) -> None:
    """Otherwise Ctrl-C would arrive twice. SIGWINCH is sent in the same way, and the launcher does not pass it on."""
    job = f"trap 'exit 42' WINCH; trap 'exit 41' TERM; echo ready; {LOOP}"
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "eval", "data")
    assert first_output(process) == "ready"
    os.killpg(process.pid, signal.SIGWINCH)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 41


def test_mpirun_ends_with_a_killed_launcher(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    job = f"trap 'touch {gone}; exit' TERM; echo ready; {LOOP}"
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "eval", "data")
    assert first_output(process) == "ready"
    process.kill()
    wait_until(gone.exists)
    process.communicate(timeout=30)


HASTY = "import sys; from launch import __main__, cleanup; cleanup.MPIRUN_SECONDS = 1; sys.exit(__main__.main())"


@pytest.mark.slow
def test_an_mpirun_that_does_not_end_after_its_ranks_is_killed(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, f"OMPI_COMM_WORLD_RANK=0 sleep 2; {LOOP}")
    command = [sys.executable, "-c", HASTY, "-n", "2", "--mpirun", mpirun, "--", "train", "data"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGKILL
    assert 2 < time.monotonic() - started < 12


@pytest.mark.slow
def test_an_mpirun_that_starts_its_ranks_slowly_is_not_killed(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, "sleep 3; exit 7")
    command = [sys.executable, "-c", HASTY, "-n", "2", "--mpirun", mpirun, "--", "train", "data"]
    assert subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=60, check=False).returncode == 7


REPORT = """
import json, os, sys
from dptrain.system import record
from dptrain.system.start import start_program
start_program()
record.begin()
from mpi4py import MPI
world = MPI.COMM_WORLD
everyone = world.gather((sorted(os.sched_getaffinity(0)), os.environ["OPENBLAS_NUM_THREADS"], os.environ["HOME"]))
if world.rank == 0:
    print(json.dumps(everyone))
    if sys.argv[1] == "0":
        record.report_end(0)
world.Barrier()
sys.exit(int(sys.argv[1]))
"""
RUNNER = """
import os, sys
from launch.attempt import run_attempt
from launch.signals import Signals
from launch.targets import choose
target = choose(None, None, os.environ)
command = target.command(sys.argv[2:], int(sys.argv[1]), {}, os.environ)
sys.exit(run_attempt(command, os.environ, target, Signals(None)).status)
"""


def run_ranks(ranks: int, tmp_path: Path, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """REPORT on real ranks, without HOME in the environment, through the functions of the launcher."""
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    inherited = {name: value for name, value in os.environ.items() if name != "HOME"}
    return subprocess.run(
        [sys.executable, "-c", RUNNER, str(ranks), sys.executable, str(script), str(status)],
        cwd=CHECKOUT,
        env=rank_environment(inherited | variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.mpi
@pytest.mark.parametrize("extra", [-1, 0, 1], ids=["fewer ranks than cores", "as many", "more"])
def test_each_real_rank_has_separate_cores_if_there_are_enough(extra: int, tmp_path: Path) -> None:
    everything = os.sched_getaffinity(0)
    cores = physical_cores(everything)
    ranks = max(1, len(cores) + extra)
    done = run_ranks(ranks, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == ranks
    assert {threads for _, threads, _ in report} == {"1"}
    if ranks == 1 or ranks > len(cores):
        assert all(set(cpus) == everything for cpus, _, _ in report)
    else:
        assert all(sum(core <= set(cpus) for core in cores) == len(cores) // ranks for cpus, _, _ in report)
        assert len({cpu for cpus, _, _ in report for cpu in cpus}) == sum(len(cpus) for cpus, _, _ in report)


@pytest.mark.mpi
def test_the_user_can_leave_real_ranks_unbound(tmp_path: Path) -> None:
    report = json.loads(run_ranks(2, tmp_path, DPTRAIN_BIND="none").stdout)
    assert all(set(cpus) == os.sched_getaffinity(0) for cpus, _, _ in report)


@pytest.mark.mpi
def test_a_job_starts_even_if_a_killed_job_left_a_session_of_the_same_number(tmp_path: Path) -> None:
    stand_in = tmp_path / "mpirun"
    stand_in.write_text(
        f"#!/bin/sh\nmkdir -p {tmp_path}/ompi.$$\ntouch {tmp_path}/ompi.$$/pmix.vm.tool\n"
        f'exec {find_mpirun(None)} "$@"\n'
    )
    stand_in.chmod(0o755)
    done = run_launch(
        "-n", "1", "--mpirun", str(stand_in), "--", "--version", TMPDIR=str(tmp_path), **{SESSION_BASE: str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("mpirun-*"))


def test_no_folder_for_the_session_is_an_error(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    mpirun = fake_mpirun("mpirun (Open MPI) 5.0.11")
    done = run_launch("-n", "1", "--mpirun", mpirun, "--", "--version", **{SESSION_BASE: str(tmp_path / "none")})
    assert done.returncode == 1
    assert only_line(done.stderr).startswith(f"launch: error: cannot start {mpirun}: ")
    assert str(tmp_path / "none") in done.stderr


@pytest.mark.mpi
def test_a_real_job_that_fails_returns_its_status(tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, status=5).returncode == 5


@pytest.mark.mpi
def test_a_rank_killed_in_a_real_job_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os\nfrom mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1:\n    os.kill(os.getpid(), 9)\n"
        "MPI.COMM_WORLD.Barrier()\n"
    )
    environment = rank_environment(os.environ)
    command = choose(None, None, environment).command([sys.executable, str(script)], 2, {}, environment)
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
