"""launch.outcome: statuses and reasons, from what real mpiruns wrote."""

from __future__ import annotations

import pytest

from launch.outcome import outcome

OPEN_MPI_NOTICE = """
--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 17802 on node vm exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
MPICH_NOTICE = """
=   PID 17961 RUNNING AT vm
=   EXIT CODE: 9
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
"""


@pytest.mark.parametrize(
    ("returncode", "told", "notices", "status", "reason"),
    [
        (137, None, OPEN_MPI_NOTICE, 137, "rank 1 on vm was killed by SIGKILL"),
        (9, None, MPICH_NOTICE, 137, "a rank was killed by SIGKILL"),
        (9, None, "", 9, "no reason was told"),  # a rank's own exit status
        (139, None, "", 139, "a rank was killed by SIGSEGV"),
        (255, None, "", 255, "a rank was killed by signal 127"),
        (-9, None, "", 137, "mpirun was killed by SIGKILL"),
        (137, "rank 0: a silent rank", OPEN_MPI_NOTICE, 137, "rank 0: a silent rank"),
        (0, None, "", 0, "finished"),
    ],
)
def test_the_status_is_a_shells_and_the_reason_the_best_known(
    returncode: int, told: str | None, notices: str, status: int, reason: str
) -> None:
    ended = outcome(returncode, 1.0, told, notices)
    assert (ended.status, ended.reason) == (status, reason)


def test_a_long_reason_is_shortened() -> None:
    assert outcome(1, 1.0, "x" * 201, "").reason == "x" * 197 + "..."
    assert outcome(1, 1.0, "x" * 200, "").reason == "x" * 200


@pytest.mark.parametrize(
    ("returncode", "told", "final"),
    [
        (0, None, True),
        (2, "unknown flag", True),
        (75, None, True),
        (1, "the loss is nan", True),
        (1, None, False),
        (70, "rank 1 failed", False),
        (76, "rank 1 is silent", False),
        (137, None, False),
        (-9, None, False),
    ],
)
def test_what_a_restart_would_meet_again_is_final(returncode: int, told: str | None, final: bool) -> None:
    assert outcome(returncode, 1.0, told, "").final is final
