"""One attempt at a job: the target's program runs, its output and signals are passed on, and nothing remains."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dptrain.errors import DptrainError
from dptrain.system.record import OWNER, VARIABLE

from .cleanup import no_leftovers, session_folder
from .output import SCREEN, Relay
from .signals import Signals, set_default_signals
from .status import Outcome, StatusServer, decide
from .targets.target import Target

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_attempt(
    command: Sequence[str], environment: Mapping[str, str], target: Target, signals: Signals, *, verbose: bool = False
) -> Outcome:
    """Run `command`, which `target` has made, to its end; DptrainError when it cannot be started.

    `verbose`: show all notices of mpirun. The command has a session of its own, so that Ctrl-C, which a terminal sends
    to every process of the foreground, reaches it through `signals` only.
    """
    started = time.monotonic()
    with session_folder(environment) as variables:
        server = StatusServer()
        server.start()
        variables.pop(OWNER, None)
        with no_leftovers(server.token) as processes:
            process = start(command, {**variables, VARIABLE: server.address})
            notices = None if verbose else target.notices
            assert process.stdout is not None
            assert process.stderr is not None
            relays = [Relay(process.stderr, SCREEN.error, notices), Relay(process.stdout, SCREEN.out, notices)]
            for relay in relays:
                relay.start()
            returncode = signals.wait_for(process, processes)
        for relay in relays:  # only now: a rank that outlived mpirun had the streams open
            relay.finish()
        SCREEN.end_bar()
        record = server.finish()
    recent = "\n".join(relay.recent.decode(errors="replace") for relay in relays)
    ended = signals.explain(decide(target.outcome(returncode, recent), record))
    if not ended.explained:
        for relay in relays:
            relay.show_notices()
    return replace(ended, seconds=time.monotonic() - started)


def start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the command; DptrainError when it cannot be started."""
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before_exec(),
        )
    except OSError as error:
        raise DptrainError(f"cannot start {command[0]}: {error}") from error


def before_exec() -> Callable[[], None]:
    """What a child calls before exec: it sets default signals, and (on Linux) SIGTERM when this process dies.

    Otherwise a launcher that is killed (SIGKILL, out of memory) would leave mpirun and its ranks behind.
    """
    if sys.platform != "linux":
        return set_default_signals
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible is done
    parent = os.getpid()

    def in_child() -> None:
        set_default_signals()
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)

    return in_child
