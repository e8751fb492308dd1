"""launch.attempt: statuses and ends of one job, with real processes and real ranks."""

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
from launch_runs import CHECKOUT, LOOP, OPEN_MPI, first_output, run_launch, start_launch, wait_until

from launch.binding import Host, cores_per_rank, this_host
from launch.mpirun import find_mpirun, mpirun_command, mpirun_kind, rank_environment
from launch.session import SESSION_BASE


def test_what_a_terminal_sends_to_its_foreground_does_not_reach_mpirun_directly(
    fake_mpirun: Callable[..., str],
) -> None:
    """Else Ctrl-C would arrive twice. SIGWINCH goes the same way, and the launcher does not pass it on."""
    job = f"trap 'exit 42' WINCH; trap 'exit 41' TERM; echo ready; {LOOP}"
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "eval", "data")
    assert first_output(process) == "ready"
    os.killpg(process.pid, signal.SIGWINCH)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 41


def test_a_killed_launcher_takes_mpirun_along(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    job = f"trap 'touch {gone}; exit' TERM; echo ready; {LOOP}"
    process = start_launch("-n", "2", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "eval", "data")
    assert first_output(process) == "ready"
    process.kill()
    wait_until(gone.exists)
    process.communicate(timeout=30)


HASTY = "import sys; from launch import __main__, leftovers; leftovers.GONE_FOR_GOOD = 1; sys.exit(__main__.main())"


@pytest.mark.slow
def test_an_mpirun_that_stays_without_its_ranks_is_ended(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, f"OMPI_COMM_WORLD_RANK=0 sleep 2; {LOOP}")
    command = [sys.executable, "-c", HASTY, "-n", "2", "--mpirun", mpirun, "--", "train", "data"]
    started = time.monotonic()
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGKILL
    assert 2 < time.monotonic() - started < 12


@pytest.mark.slow
def test_an_mpirun_that_takes_long_to_start_its_ranks_is_waited_for(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, "sleep 4; exit 7")
    command = [sys.executable, "-c", HASTY, "-n", "2", "--mpirun", mpirun, "--", "train", "data"]
    assert subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=60, check=False).returncode == 7


REPORT = """
import json, os, sys
from mpi4py import MPI
from dptrain.system import record
record.begin()
world = MPI.COMM_WORLD
own = sorted(os.sched_getaffinity(0)), os.environ["OPENBLAS_NUM_THREADS"], os.environ["HOME"]
everyone = world.gather(own)
if world.rank == 0:
    print(json.dumps(everyone))
    if sys.argv[1] == "0":
        record.report_end(0)
world.Barrier()
sys.exit(int(sys.argv[1]))
"""


def run_ranks(ranks: int, host: Host, tmp_path: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """REPORT on real ranks, without HOME in the environment, through the launcher's own steps."""
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    environment = rank_environment({name: value for name, value in os.environ.items() if name != "HOME"})
    mpirun = find_mpirun(None)
    kind = mpirun_kind(mpirun, environment)
    program = [sys.executable, str(script), str(status)]
    command = mpirun_command(program, ranks, mpirun, kind, host)
    runner = (
        "import os, sys; from launch.attempt import run_attempt; from launch.signals import Kind, Signals\n"
        "sys.exit(run_attempt(sys.argv[1:], os.environ, Signals(Kind.OPEN_MPI, saves=False)).status)"
    )
    return subprocess.run(
        [sys.executable, "-c", runner, *command],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.mpi
@pytest.mark.parametrize("extra", [-1, 0, 1], ids=["fewer ranks than cores", "as many", "more"])
def test_real_ranks_have_the_cores_they_were_meant_to_have(extra: int, tmp_path: Path) -> None:
    host = this_host()
    ranks = max(1, host.cores + extra)
    done = run_ranks(ranks, host, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == ranks
    assert {threads for _, threads, _ in report} == {"1"}
    cores = cores_per_rank(ranks, host)
    everything = sorted(os.sched_getaffinity(0))
    if cores is None:
        assert all(cpus == everything for cpus, _, _ in report)
    else:
        threads_per_core = len(everything) // host.cores
        assert all(len(cpus) == cores * threads_per_core for cpus, _, _ in report)
        assert len({cpu for cpus, _, _ in report for cpu in cpus}) == ranks * cores * threads_per_core


@pytest.mark.mpi
def test_a_job_starts_beside_the_session_of_a_killed_one_of_its_number(tmp_path: Path) -> None:
    unlucky = tmp_path / "mpirun"
    unlucky.write_text(
        f"#!/bin/sh\nmkdir -p {tmp_path}/ompi.$$\ntouch {tmp_path}/ompi.$$/pmix.vm.tool\n"
        f'exec {find_mpirun(None)} "$@"\n'
    )
    unlucky.chmod(0o755)
    done = run_launch(
        "-n", "1", "--mpirun", str(unlucky), "--", "--version", TMPDIR=str(tmp_path), **{SESSION_BASE: str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("mpirun-*"))


def test_no_folder_for_the_session_is_an_error(fake_mpirun: Callable[..., str], tmp_path: Path) -> None:
    mpirun = fake_mpirun("mpirun (Open MPI) 5.0.11")
    done = run_launch("-n", "1", "--mpirun", mpirun, "--", "--version", **{SESSION_BASE: str(tmp_path / "none")})
    assert done.returncode == 1
    assert "launch: error: no folder for mpirun's session" in done.stderr
    assert "TMPDIR" in done.stderr


@pytest.mark.mpi
def test_a_real_job_that_fails_returns_its_status(tmp_path: Path) -> None:
    assert run_ranks(2, this_host(), tmp_path, status=5).returncode == 5


@pytest.mark.mpi
def test_a_rank_killed_in_a_real_job_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os\nfrom mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1:\n    os.kill(os.getpid(), 9)\n"
        "MPI.COMM_WORLD.Barrier()\n"
    )
    environment = rank_environment(os.environ)
    mpirun = find_mpirun(None)
    command = mpirun_command([sys.executable, str(script)], 2, mpirun, mpirun_kind(mpirun, environment), this_host())
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
