"""One attempt at a job: mpirun started, its output and signals passed on, and nothing of it left at the end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from dptrain.errors import DptrainError
from dptrain.system.record import OWNER
from dptrain.system.record import VARIABLE as MARK

from .leftovers import JobProcesses, RanksGone, no_leftovers
from .outcome import Outcome, after_signal, outcome
from .records import believed
from .relay import Relay
from .screen import SCREEN
from .session import session_folder, session_variables
from .signals import Signals, with_default_signals

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_attempt(
    command: Sequence[str], environment: Mapping[str, str], signals: Signals, *, verbose: bool = False
) -> Outcome:
    """Run `command` to its end; DptrainError when it cannot be started.

    `verbose`: also show the notices of mpirun that explain nothing new. The command has a session of its own, so that
    Ctrl-C, which a terminal sends to every process of the foreground, reaches it through `signals` only.
    """
    started = time.monotonic()
    with session_folder(environment) as (folder, lock):
        with no_leftovers() as mark:
            token = mark[MARK]
            inherited = {name: value for name, value in environment.items() if name != OWNER}
            signals.processes = JobProcesses(token)
            process = start(command, {**session_variables(inherited, folder), **mark}, lock)
            relays = relays_of(process, token, verbose)
            returncode = signals.wait_for(process, RanksGone(signals.processes))
        for relay in relays:  # only now: a rank that outlived mpirun had the streams open
            relay.finish()
        SCREEN.end_bar()
    record = believed([record for relay in relays for record in relay.records])
    notices = "\n".join(relay.recent.decode(errors="replace") for relay in relays)
    ended = after_signal(outcome(returncode, time.monotonic() - started, record, notices), signals)
    if not ended.explained and not verbose:
        for relay in relays:
            relay.show_notices()
    return ended


def start(command: Sequence[str], environment: Mapping[str, str], lock: int) -> subprocess.Popen[bytes]:
    """Start mpirun, which inherits the descriptor `lock`; DptrainError when it cannot be started."""
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[lock],
            preexec_fn=before_exec(),
        )
    except OSError as error:
        raise DptrainError(f"cannot start {command[0]}: {error}") from error


def relays_of(process: subprocess.Popen[bytes], token: str, verbose: bool) -> list[Relay]:
    """Running relays of standard error, where the run reports its end, and standard output, where MPICH does."""
    sources = ((process.stderr, SCREEN.error), (process.stdout, SCREEN.out))
    relays = [Relay(source, target, token, verbose=verbose) for source, target in sources if source is not None]
    for relay in relays:
        relay.start()
    return relays


def before_exec() -> Callable[[], None]:
    """What a child calls before exec: default signals, and the end with this process (Linux only).

    The kernel sends it SIGTERM when this process dies. Otherwise a launcher that is killed (SIGKILL, out of memory)
    would leave mpirun and its ranks behind.
    """
    if sys.platform != "linux":
        return with_default_signals
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible is done
    parent = os.getpid()

    def in_child() -> None:
        with_default_signals()
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before the request was in force
            os.kill(os.getpid(), signal.SIGTERM)

    return in_child
