"""What every target has in common."""

from __future__ import annotations

import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dptrain.errors import PREEMPTED, UNFORESEEN, USAGE, DptrainError

# By default ssh waits for a silent host without limit, and Open MPI's mpirun then ignores even SIGTERM. BatchMode: a
# question that nobody can answer is an error.
SSH_LIMITS = "-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"
NO_RECORD = "{} ended without an error, but the run has not reported its end: its ranks have died, or a host is lost"
NOT_ELASTIC = "--elastic needs Open MPI 5 or later, found {}; use --max-restarts K instead"


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    status: int  # exit status; 128 + the signal's number where a signal killed mpirun or a rank
    reason: str = ""  # one line; "" where it is not known
    final: bool = False  # a restart does not help
    reported: bool = False  # the run itself has sent this, and has printed the reason
    rank_died: bool = False  # the target reports the death of a rank
    more: Mapping[str, str] = field(default_factory=dict)  # `by` (signals), `checkpoint`, `run_dir` (paths)
    seconds: float = 0.0


class Target(ABC):
    """A way to start ranks: a program of this host that starts them, passes their output on and ends after them.

    The ranks must receive the variables of `environment`, and their standard output and error must reach those of the
    program. To add a target, write a subclass in a new file and add it to `CLASSES`.
    """

    banner: ClassVar[str] = ""  # what `mpirun --version` of this MPI prints; "" for a target of --target only
    save_signal: ClassVar[signal.Signals] = signal.SIGTERM  # asks the ranks to save a checkpoint and end
    notices: ClassVar[re.Pattern[bytes] | None] = None  # what the program itself prints at the end, as whole lines

    def __init__(self, starter: str = "", version: str = "") -> None:
        self.starter, self.version = starter, version  # mpirun's path, and its answer to --version

    @abstractmethod
    def command(
        self, program: Sequence[str], ranks: int, hosts: Mapping[str, int], environment: Mapping[str, str]
    ) -> list[str]:
        """The command that runs `program` on this many ranks; it is started with `environment`.

        Without hosts the target chooses them: this host, or those of a batch system's allocation.
        """

    def variables(self, environment: Mapping[str, str], hosts: Mapping[str, int]) -> dict[str, str]:
        """More variables for the command, such as time limits; none that the user has set."""
        return {}

    def make_elastic(self) -> None:
        """From now on `command` lets ranks continue without those that fail. DptrainError where that is impossible."""
        raise DptrainError(NOT_ELASTIC.format(type(self).__name__))

    def outcome(self, returncode: int, output: str) -> Outcome:
        """The failure of a job without a status record, by the program's return code (Popen's) and its last output."""
        program = self.starter.rpartition("/")[2] or type(self).__name__
        status = 128 - returncode if returncode < 0 else returncode or UNFORESEEN
        reason = ""  # nothing is known beyond the status
        if returncode < 0:
            reason = f"{program} was killed by {signal_name(-returncode)}"
        elif returncode - 128 in signal.valid_signals():
            reason = f"a rank was killed by {signal_name(returncode - 128)}"
        elif returncode == 0:
            reason = NO_RECORD.format(program)
        return Outcome(status, reason, final=status in (USAGE, PREEMPTED))


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
