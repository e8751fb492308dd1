"""dptrain.system.signals: what a program does about signals that its parent process has ignored or blocked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mpi_runs import PROGRAMS, python_of
from selection import quick_first

from dptrain.system.signals import ENDING, SAME_REQUEST

REPORT = """
import signal, subprocess
from dptrain.system.signals import handled
from dptrain.system.start import start_program
start_program()
child = subprocess.run(["sh", "-c", "exit 3"]).returncode
print(*(number.name for number in handled()), signal.pthread_sigmask(signal.SIG_BLOCK, ()) or "none blocked", child)
"""


def report(before: Callable[[], object]) -> str:
    """The report of a program that was started with these signals ignored or blocked."""
    done = subprocess.run([sys.executable, "-c", REPORT], preexec_fn=before, capture_output=True, text=True, check=True)
    return done.stdout.strip()


NAMES = " ".join(number.name for number in ENDING)


def test_all_signals_that_ask_a_program_to_end_are_handled() -> None:
    assert report(lambda: None) == f"{NAMES} none blocked 3"
    assert {"SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU"} <= set(NAMES.split())


@quick_first("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    """Found in the field: `&` in a script ignores SIGINT, but Ctrl-C meant for another command ended the job."""
    expected = NAMES.replace(number.name, "").replace("  ", " ").strip()
    assert report(lambda: signal.signal(number, signal.SIG_IGN)) == f"{expected} none blocked 3"


def test_a_signal_that_was_blocked_arrives() -> None:
    assert report(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)) == f"{NAMES} none blocked 3"


def test_a_childs_status_is_known_even_if_sigchld_was_ignored() -> None:
    """Found in the field: with SIGCHLD ignored the kernel forgets statuses; every child seems to have returned 0."""
    assert report(lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) == f"{NAMES} none blocked 3"


def test_the_signals_that_slurm_sends_to_end_a_job_are_one_request() -> None:
    assert SAME_REQUEST == 2.0


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
@pytest.mark.parametrize(
    ("before", "status", "out"), [(signal.SIG_IGN, 0, "alive\n"), (signal.SIG_DFL, -signal.SIGHUP, "")]
)
def test_mpi_does_not_change_what_a_closed_terminal_does(
    mpi: str, before: signal.Handlers, status: int, out: str, tmp_path: Path
) -> None:
    """Found in the field: UCX, below MPI, takes SIGHUP, which then prints hundreds of debug lines and ends nothing."""
    program = [python_of(mpi), PROGRAMS / "hangup.py"]
    variables = {**os.environ, "OMPI_COMM_WORLD_SIZE" if mpi == "openmpi" else "MPI_LOCALNRANKS": "1"}
    done = subprocess.run(
        program, preexec_fn=lambda: signal.signal(signal.SIGHUP, before), capture_output=True, text=True,
        env=variables, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (status, out, "")
