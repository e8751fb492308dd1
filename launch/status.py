"""How an attempt ended: the status records of its ranks, or else what the target knows."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from dptrain.errors import PREEMPTED
from dptrain.system.addresses import own_addresses
from dptrain.system.record import CONFIRMED, LONGEST_RECORD
from dptrain.system.text import shown

RECORD_SECONDS = 1.0  # for a connected rank to send its record


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt.

    status     exit status; 128 + the signal's number where a signal killed mpirun or a rank
    reason     one line; "" where a record gives none
    final      a restart does not help
    reported   the run itself has sent this as its record
    explained  the reason is known: mpirun's notices need not be shown
    rank_died  the target reports the death of a rank
    more       further facts of the record: `by` (signals), `checkpoint` and `run_dir` (paths)
    """

    status: int
    reason: str = ""
    final: bool = False
    reported: bool = False
    explained: bool = True
    rank_died: bool = False
    more: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def printed(self) -> bool:
        """Whether the run has printed the reason."""
        return self.reported and self.status != PREEMPTED and bool(self.reason)


class StatusServer(threading.Thread):
    """Receives the status records of an attempt's ranks, from `start` to `finish` (see `dptrain.system.record`)."""

    def __init__(self) -> None:
        super().__init__(name="status", daemon=True)
        self.token = secrets.token_hex(16)
        self.records: list[Outcome] = []
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
                with contextlib.suppress(OSError), self._listener.accept()[0] as connection:
                    connection.settimeout(RECORD_SECONDS)
                    record = parse_record(connection.makefile("rb").readline(LONGEST_RECORD), self.token)
                    if record is not None:
                        self.records.append(record)
                        connection.sendall(CONFIRMED)

    def finish(self) -> Outcome | None:
        """The record that counts, None without one: a failure before a success, one with a reason before others."""
        self._ending = True
        with contextlib.suppress(OSError):  # wakes the thread; earlier connections are accepted first
            socket.create_connection(("127.0.0.1", self._port), timeout=RECORD_SECONDS).close()
        self.join(2 * RECORD_SECONDS)
        return min(self.records, key=lambda record: (record.status == 0, not record.reason), default=None)


def parse_record(line: bytes, token: str) -> Outcome | None:
    """The record that a line of JSON holds, None for anything else and without the token."""
    try:
        found = json.loads(line)
        known = secrets.compare_digest(found.pop("token"), token)
        status, reason, retry = (found.pop(name) for name in ("status", "reason", "retry"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if not known or status not in range(256):
        return None
    final = not retry or status == 128 + signal.SIGINT  # the user's code raised KeyboardInterrupt
    more = {name: shown(value) for name, value in found.items()}
    return Outcome(status, shown(reason), final, reported=True, more=more)


def decide(by_target: Outcome, record: Outcome | None) -> Outcome:
    """The record, or else what the target knows.

    A record of a stop by a signal does not count if a rank has died: mpirun then ends the others by a signal.
    """
    if record is None or (record.status == PREEMPTED and "checkpoint" not in record.more and by_target.rank_died):
        return by_target
    return record
