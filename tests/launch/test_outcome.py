"""launch.outcome: statuses and reasons, from records and from what real mpiruns wrote."""

from __future__ import annotations

import signal

import pytest

from launch.mpirun import Kind
from launch.outcome import after_signal, outcome
from launch.records import Record, believed
from launch.signals import Signals

KILLED = """
--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 17802 on node vm exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
LEFT = "prterun has exited due to process rank 1 with PID 3635 on node vm exiting\nimproperly. There are three reasons"
EXITED = "   Process name: [prterun-vm-3438@1,1]\n   Exit code:    5\n"
MPICH_KILLED = """
=   PID 17961 RUNNING AT vm
=   EXIT CODE: 9
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
"""


@pytest.mark.parametrize(
    ("returncode", "notices", "status", "reason"),
    [
        (137, KILLED, 137, "rank 1 on vm was killed by SIGKILL"),
        (9, MPICH_KILLED, 137, "a rank was killed by SIGKILL"),
        (9, "", 9, "mpirun ended with status 9"),  # a rank's own exit status
        (1, LEFT, 1, "rank 1 on vm ended without a word, as after os._exit"),
        (5, EXITED, 5, "rank 1 ended with status 5 without a word"),
        (139, "", 139, "a rank was killed by SIGSEGV"),
        (192, "", 192, "a rank was killed by SIGRTMAX"),
        (193, "", 193, "mpirun ended with status 193"),  # there is no signal 65
        (255, "", 255, "mpirun ended with status 255"),
        (127, "", 127, "mpirun ended with status 127, as for a program that is not found"),
        (-9, "", 137, "mpirun was killed by SIGKILL"),
    ],
)
def test_without_a_record_mpirun_explains_the_failure(returncode: int, notices: str, status: int, reason: str) -> None:
    """Found in the field: 255 was reported as "killed by signal 127"."""
    ended = outcome(returncode, 1.0, None, notices)
    assert (ended.status, ended.reason) == (status, reason)
    assert not ended.told


@pytest.mark.parametrize("returncode", [0, 1, 75, 137, -9])
@pytest.mark.parametrize(
    ("record", "final"),
    [
        (Record(0), True),
        (Record(1, "the loss is nan"), True),
        (Record(70, "rank 1 failed", retry=True), False),
        (Record(75, "stopped", more={"checkpoint": "x"}), True),
    ],
)
def test_a_record_decides_whatever_mpirun_returns(returncode: int, record: Record, final: bool) -> None:
    ended = outcome(returncode, 1.0, record, KILLED)
    assert (ended.status, ended.final) == (record.status, final)
    assert ended.told == (record.status in (1, 70))


@pytest.mark.parametrize(
    ("returncode", "notices", "status"), [(137, KILLED, 137), (9, MPICH_KILLED, 137), (1, LEFT, 1), (5, EXITED, 5)]
)
def test_ranks_that_mpirun_has_ended_by_sigterm_after_a_death_were_not_asked_to_end(
    returncode: int, notices: str, status: int
) -> None:
    record = Record(75, "stopped by SIGTERM before the first step: nothing is lost")
    ended = outcome(returncode, 1.0, record, notices)
    assert (ended.status, ended.final) == (status, False)
    assert outcome(75, 1.0, record, "").status == 75


def test_success_without_a_record_is_a_failure_that_is_retried() -> None:
    ended = outcome(0, 1.0, None, "")
    assert (ended.status, ended.final) == (70, False)
    assert "has not reported its end" in ended.reason


def test_a_long_reason_is_shortened_and_an_escape_is_escaped() -> None:
    assert outcome(1, 1.0, Record(1, "x" * 201), "").reason == "x" * 197 + "..."
    assert outcome(1, 1.0, Record(1, "x" * 200), "").reason == "x" * 200
    assert outcome(1, 1.0, Record(1, "\x1b[2J"), "").reason == "\\x1b[2J"


def test_of_several_records_a_failure_with_a_reason_counts_first() -> None:
    success, silent, first, second = Record(0), Record(1), Record(70, "a", retry=True), Record(1, "b")
    assert believed([]) is None
    assert believed([success]) is success
    assert believed([success, silent]) is silent
    assert believed([success, silent, first, second]) is first


@pytest.mark.parametrize(
    ("saves", "requests", "returncode", "status"),
    [
        (True, [signal.SIGINT], 138, 75),  # a rank died of SIGUSR1 before it handled it
        (True, [signal.SIGINT], 0, 75),
        (True, [signal.SIGINT], 139, 139),
        (False, [signal.SIGHUP], 143, 129),
        (False, [signal.SIGINT], 0, 130),
        (True, [signal.SIGINT, signal.SIGTERM], 1, 143),
        (True, [signal.SIGINT, signal.SIGTERM], 0, 143),
        (True, [signal.SIGINT, signal.SIGINT], 137, 137),
        (True, [], 138, 138),
    ],
)
def test_a_job_that_was_asked_to_end_and_has_no_record_is_explained_by_the_signal(
    saves: bool, requests: list[int], returncode: int, status: int
) -> None:
    signals = Signals(Kind.OPEN_MPI, saves)
    signals.requests = requests
    signals.passed = (signal.SIGUSR1 if saves else signal.SIGTERM) if requests else None
    ended = after_signal(outcome(returncode, 1.0, None, ""), signals)
    assert ended.status == status
    assert ended.final == bool(requests)
