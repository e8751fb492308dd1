"""One attempt at a job: mpirun started, its output and signals passed on, and nothing of it left at the end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from dptrain.errors import UNFORESEEN, DptrainError

from .leftovers import MARK, RanksGone, no_leftovers
from .outcome import Outcome, outcome
from .relay import Relay
from .signals import Signals

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Where Open MPI's mpirun makes its session folder; MPICH's keeps none.
SESSION_BASE = "PRTE_MCA_prte_tmpdir_base"


def run_attempt(
    command: Sequence[str], environment: Mapping[str, str], signals: Signals, *, elastic: bool = False
) -> Outcome:
    """Run `command` to its end; DptrainError when it cannot be started.

    mpirun of an `elastic` job returns 0 however its ranks have ended: what counts then is what they told.
    The command has a session of its own, so that Ctrl-C, which a terminal sends to every process of the
    foreground, reaches it through `signals` only.
    """
    started = time.monotonic()
    with session_base(environment) as folder:
        with no_leftovers() as mark:
            process = start(command, {**environment, SESSION_BASE: folder, **mark})
            relays = relays_of(process)
            returncode = signals.wait_for(process, RanksGone(mark[MARK]))
        for relay in relays:  # only now: a rank that outlived mpirun had the streams open
            relay.finish()
    if elastic and returncode in (0, -signal.SIGKILL):
        returncode = 0 if any(relay.finished for relay in relays) else UNFORESEEN
    told = next((relay.told for relay in relays if relay.told is not None), None)
    notices = "\n".join(relay.recent.decode(errors="replace") for relay in relays)
    return outcome(returncode, time.monotonic() - started, told, notices)


def start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start mpirun; DptrainError when it cannot be."""
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
    except OSError as error:
        raise DptrainError(f"cannot start {command[0]}: {error}") from error


def relays_of(process: subprocess.Popen[bytes]) -> list[Relay]:
    """Running relays of standard error, where dptrain tells its errors, and standard output, MPICH's place to tell."""
    sources = ((process.stderr, sys.stderr), (process.stdout, sys.stdout))
    relays = [Relay(source, target.fileno()) for source, target in sources if source is not None]
    for relay in relays:
        relay.start()
    return relays


def session_base(environment: Mapping[str, str]) -> tempfile.TemporaryDirectory[str]:
    """A folder of this attempt's own for mpirun's session; raises DptrainError where none can be made.

    Open MPI names a session after mpirun's process number, and does not start ("listener thread failed to start")
    where a job that was killed, or one of another container, has left a session of the same number.
    """
    try:
        return tempfile.TemporaryDirectory(
            prefix="mpirun-", dir=environment.get(SESSION_BASE), ignore_cleanup_errors=True
        )
    except OSError as error:
        raise DptrainError(f"no folder for mpirun's session: {error}; TMPDIR can name another disk") from error


def end_with_parent() -> Callable[[], None] | None:
    """What a child calls before exec so that the kernel sends it SIGTERM when this process dies (Linux only).

    Without it, a launcher that is killed (SIGKILL, out of memory) would leave mpirun and its ranks behind.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible is done
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before the request was in force
            os.kill(os.getpid(), signal.SIGTERM)

    return in_child
