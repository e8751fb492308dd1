"""One attempt at a job: run the target's program, pass on its output and signals, receive how the run ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dptrain.system.addresses import local_addresses
from dptrain.system.record import CONFIRMED, LONGEST_RECORD, OWNER, VARIABLE
from dptrain.system.signals import ENDING
from dptrain.system.text import shown

from .cleanup import no_leftovers, session_folder
from .output import SCREEN, Relay
from .signals import STOPPING, Signals
from .targets.target import Outcome, Target

RECORD_SECONDS = 1.0  # for a connected rank to send its record
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only; found here, as between fork and exec little is allowed


def run_attempt(
    command: Sequence[str], environment: Mapping[str, str], target: Target, signals: Signals, *, verbose: bool = False
) -> Outcome:
    """Run the `command` of a target to its end; OSError if it cannot be started. `verbose`: show mpirun's notices."""
    started = time.monotonic()
    with session_folder(environment) as variables:
        server = StatusServer()
        server.start()
        variables.pop(OWNER, None)
        with no_leftovers(server.token) as processes:
            process = subprocess.Popen(
                command,
                env={**variables, VARIABLE: server.address},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that Ctrl-C in a terminal reaches it through `signals` only
                preexec_fn=prepare_signals,
            )
            signals.process, signals.processes = process, processes  # before the job's first output can be seen
            notices = None if verbose else target.notices
            relays = [Relay(process.stderr, SCREEN.error, notices), Relay(process.stdout, SCREEN.out, notices)]
            for relay in relays:
                relay.start()
            returncode = signals.wait_for(process, processes)
        for relay in relays:  # only now: a rank that outlived mpirun had the streams open
            relay.finish()
        SCREEN.end_view()
    recent = b"\n".join(relay.recent for relay in relays)
    ended = signals.explain(target.outcome(returncode, recent.decode(errors="replace")), server.finish())
    if target.notices and not (verbose or ended.reason or ended.reported):
        SCREEN.error(b"".join(notice[0] for notice in target.notices.finditer(recent)))
    return replace(ended, seconds=time.monotonic() - started)


def prepare_signals() -> None:
    """Called in mpirun's process before it starts: no signal is ignored or blocked, as all come from the launcher.

    The kernel sends it SIGTERM when the launcher dies. Otherwise one that is killed would leave the ranks behind.
    """
    for number in (*ENDING, *STOPPING, signal.SIGCONT, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if PRCTL is not None:
        PRCTL(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG


class StatusServer(threading.Thread):
    """Receives the status records of an attempt's ranks, from `start` to `finish` (see `dptrain.system.record`)."""

    def __init__(self) -> None:
        super().__init__(name="status", daemon=True)
        self.token = secrets.token_hex(16)
        self.records: list[Outcome] = []
        self._ending = False
        self._listener = socket.create_server(("", 0))
        self._port = self._listener.getsockname()[1]
        self.address = f"{self.token}@{self._port}@{','.join([*local_addresses(), '127.0.0.1'])}"

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
