"""One attempt at a job: mpirun started, signals passed on, its status returned."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from dptrain.errors import DptrainError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Where Open MPI's mpirun makes its session folder; MPICH's keeps none.
SESSION_BASE = "PRTE_MCA_prte_tmpdir_base"


def run_attempt(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `command` to its end and return its exit status, 128 + the signal's number when one killed it.

    SIGINT, SIGTERM and SIGUSR1 are passed on. The command has a session of its own, so that Ctrl-C, which a
    terminal sends to every process of the foreground, reaches it once. Raises DptrainError when it cannot be
    started.
    """
    with session_base(environment) as folder, forwarded_signals() as forward_to:
        try:
            process = subprocess.Popen(
                command,
                env={**environment, SESSION_BASE: folder},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        except OSError as error:
            raise DptrainError(f"cannot start {command[0]}: {error}") from error
        forward_to(process)
        status = process.wait()
    return 128 - status if status < 0 else status


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


@contextmanager
def forwarded_signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Within the block, signals go to the process given to the yielded function; earlier ones wait for it."""
    target: list[subprocess.Popen[bytes]] = []
    waiting: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if target:
            # mpirun may end the ranks before they can say a word.
            sys.stderr.write(
                f"launch: {signal.Signals(number).name} passed on; a run goes on from its last checkpoint\n"
            )
            target[0].send_signal(number)
        else:
            waiting.append(number)

    def forward_to(process: subprocess.Popen[bytes]) -> None:
        target.append(process)
        while waiting:
            process.send_signal(waiting.pop(0))

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield forward_to
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
