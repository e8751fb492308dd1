"""Real mpirun for tests: both MPIs, in subprocesses with a time limit.

launch/test.sh installs the project twice, once with each MPI, and names the two Pythons in
DPTRAIN_TEST_OPENMPI_PYTHON and DPTRAIN_TEST_MPICH_PYTHON. Without them, the MPI of this Python is used and the
other one's tests are skipped; with CI=true they fail instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.cleanup import no_leftovers

VARIABLES = {"openmpi": "DPTRAIN_TEST_OPENMPI_PYTHON", "mpich": "DPTRAIN_TEST_MPICH_PYTHON"}
MPI_NAMES = {"openmpi": "Open MPI", "mpich": "HYDRA"}
PROGRAMS = Path(__file__).parent / "mpi"


def python_of(mpi: str) -> Path:
    """The Python of the environment with that MPI ("openmpi" or "mpich")."""
    if named := os.environ.get(VARIABLES[mpi]):
        return Path(named)
    mpirun = Path(sys.executable).with_name("mpirun")
    if mpirun.exists():
        version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True).stdout
        if MPI_NAMES[mpi] in version:
            return Path(sys.executable)
    message = f"no {mpi}: bash launch/test.sh installs it, or name a Python that has it in {VARIABLES[mpi]}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def own_mpi() -> str:
    """The MPI of this Python, for tests that work with either MPI."""
    for mpi in VARIABLES:
        if os.environ.get(VARIABLES[mpi]) == sys.executable:
            return mpi
    version = subprocess.run([Path(sys.executable).with_name("mpirun"), "--version"], capture_output=True, text=True)
    return "openmpi" if MPI_NAMES["openmpi"] in version.stdout else "mpich"


def mpirun(
    mpi: str,
    ranks: int,
    *program: str | Path,
    cwd: Path,
    timeout: float = 120,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python PROGRAM...` on that many ranks; a job that does not end in time fails the test.

    Aborted ranks leave shared memory, which is removed: a test beside this one may check that its own job left none.
    """
    python = python_of(mpi)
    flags = ["--oversubscribe", "--bind-to", "none"] if mpi == "openmpi" else ["-bind-to", "none"]
    if mpi == "openmpi" and os.geteuid() == 0:
        flags.append("--allow-run-as-root")
    command = [str(python.with_name("mpirun")), *flags, "-n", str(ranks), str(python), *map(str, program)]
    variables = {**os.environ, **(environment or {})}
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        no_leftovers("mpirun of a test"),
        subprocess.Popen(command, cwd=cwd, env=variables, text=True, start_new_session=True, **options) as job,
    ):
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            out, err = job.communicate(timeout=30)
            pytest.fail(f"{' '.join(command)} did not end within {timeout} s\n{out}\n{err}")
        except BaseException:  # Ctrl-C, or the time limit of the test
            os.killpg(job.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, job.returncode, out, err)


def dptrain(
    *arguments: str | Path, cwd: Path, mpi: str | None = None, ranks: int = 1, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `python -m dptrain ARGUMENTS` under an MPI, or without any when `mpi` is None."""
    if mpi is not None:
        return mpirun(mpi, ranks, "-m", "dptrain", *arguments, cwd=cwd, timeout=timeout)
    return subprocess.run(
        [sys.executable, "-m", "dptrain", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
