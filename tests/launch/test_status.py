"""launch.attempt and the targets: statuses and reasons, from records and from the output of real mpiruns."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from dptrain.system.record import CONFIRMED
from launch.attempt import StatusServer, parse_record
from launch.signals import Signals
from launch.targets.mpich import MPICH
from launch.targets.openmpi import OpenMPI
from launch.targets.target import Outcome

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
LOST = "[mpiexec@node1] HYDT_bscu_wait_for_completion (b.c:109): one of the processes terminated badly; aborting\n"


TOKEN = "0123"


def line(token: str, status: object = 0, reason: object = "", retry: object = False, **more: object) -> bytes:
    found = {"token": token, "status": status, "reason": reason, "retry": retry, **more}
    return json.dumps(found).encode() + b"\n"


def recorded(status: int, reason: str = "", *, retry: bool = False, **more: str) -> Outcome:
    """The record that a run with these facts has sent."""
    found = parse_record(line(TOKEN, status, reason, retry, **more), TOKEN)
    assert found is not None
    return found


def outcome(returncode: int, record: Outcome | None, output: str) -> Outcome:
    target = MPICH("mpirun") if "EXIT STRING" in output or "mpiexec@" in output else OpenMPI("mpirun")
    return Signals(None).explain(target.outcome(returncode, output), record)


@pytest.mark.parametrize(
    ("returncode", "notices", "status", "reason"),
    [
        (137, KILLED, 137, "rank 1 on vm was killed by SIGKILL"),
        (9, MPICH_KILLED, 137, "a rank was killed by SIGKILL"),
        (255, LOST, 255, "a rank on another host has died, or the host is lost"),
        (9, "", 9, ""),  # the exit status of a rank
        (1, LEFT, 1, "rank 1 on vm ended without a report, as after os._exit"),
        (5, EXITED, 5, "rank 1 ended with status 5 without a report"),
        (139, "", 139, "a rank was killed by SIGSEGV"),
        (192, "", 192, "a rank was killed by SIGRTMAX"),
        (193, "", 193, ""),  # there is no signal 65
        (255, "", 255, ""),
        (-9, "", 137, "mpirun was killed by SIGKILL"),
    ],
)
def test_without_a_record_mpirun_explains_the_failure(returncode: int, notices: str, status: int, reason: str) -> None:
    """Found in the field: 255 was reported as "killed by signal 127"."""
    ended = outcome(returncode, None, notices)
    assert (ended.status, ended.reason, ended.reported) == (status, reason, False)


@pytest.mark.parametrize("returncode", [0, 1, 75, 137, -9])
@pytest.mark.parametrize(
    ("record", "final"),
    [
        (recorded(0), True),
        (recorded(1, "the loss is nan"), True),
        (recorded(70, "rank 1 failed", retry=True), False),
        (recorded(75, "stopped", checkpoint="x"), True),
    ],
)
def test_a_record_overrides_the_status_of_mpirun(returncode: int, record: Outcome, final: bool) -> None:
    ended = outcome(returncode, record, KILLED)
    assert (ended.status, ended.reason, ended.final, ended.reported) == (record.status, record.reason, final, True)


@pytest.mark.parametrize(
    ("returncode", "notices", "status"), [(137, KILLED, 137), (9, MPICH_KILLED, 137), (1, LEFT, 1), (5, EXITED, 5)]
)
def test_sigterm_from_mpirun_after_a_death_is_not_a_request_to_end(returncode: int, notices: str, status: int) -> None:
    record = recorded(75, "stopped by SIGTERM before the first step: nothing was lost")
    ended = outcome(returncode, record, notices)
    assert (ended.status, ended.final) == (status, False)
    assert outcome(75, record, "").status == 75


def test_success_without_a_record_is_a_failure_that_is_retried() -> None:
    ended = outcome(0, None, "")
    assert (ended.status, ended.final) == (70, False)
    assert "has not reported its end" in ended.reason


def test_an_escape_in_a_reason_is_escaped() -> None:
    assert recorded(1, "\x1b[2J").reason == "\\x1b[2J"


@pytest.mark.parametrize("retry", [True, False])
def test_a_users_keyboard_interrupt_is_not_retried(retry: bool) -> None:
    assert outcome(130, recorded(130, "interrupted", retry=retry), "").final


def sent(server: StatusServer, line: bytes) -> bytes:
    """The answer of a server to a line."""
    _, port, _ = server.address.split("@")
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection:
        connection.sendall(line)
        return connection.recv(100)


def test_a_record_is_received_and_confirmed() -> None:
    server = StatusServer()
    server.start()
    assert sent(server, line(server.token, 70, "a \u20ac", True, by="x", other=1)) == CONFIRMED
    assert server.finish() == recorded(70, "a \u20ac", retry=True, by="x", other="1")


def test_a_failure_with_a_reason_has_priority_over_other_records() -> None:
    server = StatusServer()
    server.start()
    for status, reason in ((0, ""), (1, ""), (70, "a"), (1, "b")):
        sent(server, line(server.token, status, reason))
    assert server.finish() == recorded(70, "a")


def test_a_record_that_was_sent_just_before_the_end_counts() -> None:
    server = StatusServer()
    _, port, _ = server.address.split("@")
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.sendall(line(server.token))
        server.start()
        assert server.finish() == recorded(0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0",
        b"[]",
        b"{}",
        line("another"),
        line("\u20ac"),
        line(TOKEN, "0"),
        line(TOKEN, 256),
        line(TOKEN, -1),
        b"[" * 3000,
        b"\xff",
    ],
)
def test_anything_else_is_not_a_record(content: bytes) -> None:
    assert parse_record(content, TOKEN) is None
    server = StatusServer()
    server.token = TOKEN
    server.start()
    with socket.create_connection(("127.0.0.1", int(server.address.split("@")[1]))) as connection:
        connection.sendall(content or b"\n")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""
    assert server.finish() is None


def test_no_records_give_no_result() -> None:
    server = StatusServer()
    server.start()
    assert server.finish() is None


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
    signals = Signals(signal.SIGUSR1 if saves else None)
    signals.requests = requests
    signals.passed = (signal.SIGUSR1 if saves else signal.SIGTERM) if requests else None
    ended = signals.explain(OpenMPI("mpirun").outcome(returncode, ""), None)
    assert ended.status == status
    assert ended.final == bool(requests)
