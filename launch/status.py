"""How an attempt ended: the status records of its ranks, and else what the target knows."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

from dptrain.errors import PREEMPTED
from dptrain.system.addresses import own_addresses
from dptrain.system.record import CONFIRMED, LONGEST_RECORD
from dptrain.system.text import shown

FINISHED = 0
REASON_CHARACTERS = 200
RECORD_SECONDS = 1.0  # for a connected rank to send its record


@dataclass(frozen=True)
class Record:
    """The end of a command: its exit status, the reason in one line, and whether retrying may help.

    `more` holds what else is known, by name: `by` (signals), `checkpoint` and `run_dir` (paths).
    """

    status: int
    reason: str = ""
    retry: bool = False
    more: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt.

    status     exit status; 128 + the signal's number where a signal killed mpirun or a rank
    printed    the job has printed the reason itself
    final      another attempt would end no better
    explained  the reason is known: mpirun's notices need not be shown
    rank_died  the target reports the death of a rank
    record     what the run itself has reported, None if nothing
    """

    status: int
    reason: str
    printed: bool = False
    final: bool = False
    explained: bool = True
    rank_died: bool = False
    record: Record | None = None
    seconds: float = 0.0

    @property
    def more(self) -> dict[str, str]:
        """What else the record holds."""
        return self.record.more if self.record is not None else {}


class StatusServer(threading.Thread):
    """Receives the status records of an attempt's ranks, from `start` to `finish` (see `dptrain.system.record`)."""

    def __init__(self) -> None:
        super().__init__(name="status", daemon=True)
        self.token = secrets.token_hex(16)
        self.records: list[Record] = []
        self._ending = False
        self._listener = socket.create_server(("", 0))
        self._port = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        """The value of `dptrain.system.record.VARIABLE` for the ranks."""
        return f"{self.token}@{self._port}@{','.join([*own_addresses(), '127.0.0.1'])}"

    def run(self) -> None:
        with self._listener:
            while not self._ending:
                with contextlib.suppress(OSError):
                    self._receive(self._listener.accept()[0])

    def _receive(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(RECORD_SECONDS)
            record = parse_record(connection.makefile("rb").readline(LONGEST_RECORD), self.token)
            if record is not None:
                self.records.append(record)
                connection.sendall(CONFIRMED)

    def finish(self) -> Record | None:
        """The record that counts, None without one: a failure before a success, one with a reason before others."""
        self._ending = True
        with contextlib.suppress(OSError):  # wakes the thread; earlier connections are accepted first
            socket.create_connection(("127.0.0.1", self._port), timeout=RECORD_SECONDS).close()
        self.join(2 * RECORD_SECONDS)
        return min(self.records, key=lambda record: (record.status == 0, not record.reason), default=None)


def parse_record(line: bytes, token: str) -> Record | None:
    """The record that a line of JSON holds, None for anything else and without the token."""
    try:
        found: dict[str, Any] = json.loads(line)
        given, status, reason, retry = (found.pop(name) for name in ("token", "status", "reason", "retry"))
        known = secrets.compare_digest(given, token)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if not known or type(status) is not int or not 0 <= status <= 255:
        return None
    if type(reason) is not str or type(retry) is not bool:
        return None
    return Record(status, reason, retry, {name: value for name, value in found.items() if isinstance(value, str)})


def decide(by_target: Outcome, record: Record | None) -> Outcome:
    """The outcome by the record, or by the target where there is none.

    A record of a stop by a signal does not count if a rank has died: mpirun then ends the others by a signal.
    """
    if record is None:
        return by_target
    if record.status == PREEMPTED and "checkpoint" not in record.more and by_target.rank_died:
        return by_target
    reason = shown(record.reason or ("finished" if record.status == FINISHED else "failed"))
    if len(reason) > REASON_CHARACTERS:
        reason = reason[: REASON_CHARACTERS - 3] + "..."
    printed = record.status not in (FINISHED, PREEMPTED) and bool(record.reason)
    final = not record.retry or record.status == 128 + signal.SIGINT  # the user's code raised KeyboardInterrupt
    return Outcome(record.status, reason, printed, final, record=record)
