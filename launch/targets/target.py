"""What every target has in common."""

from __future__ import annotations

import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dptrain.errors import PREEMPTED, UNFORESEEN, USAGE, DptrainError
from dptrain.system.record import OWNER, VARIABLE

from ..hosts import Host
from ..status import Outcome

# Variables that decide which program runs, how it computes and what it prints.
FORWARDED = re.compile(
    r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON\w*|VIRTUAL_ENV|CONDA_\w+|DPTRAIN_\w+|LANG|LC_\w+|COLUMNS|TTY_COMPATIBLE"
    r"|(OMP|KMP|OPENBLAS|GOTO|MKL|BLIS|VECLIB|NPY|HDF5|MPI4PY)_\w+"
)
# ssh waits for a silent host without end, and Open MPI's mpirun then ignores even SIGTERM. BatchMode: a question that
# nobody can answer is an error.
SSH_LIMITS = "-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15"
NO_RECORD = "{} ended without an error, but the run has not reported its end: its ranks have died, or a host is lost"
MEANINGS = {126: ", as for a program that cannot be executed", 127: ", as for a program that is not found"}


@dataclass(frozen=True)
class Notices:
    """How to recognize what a target itself prints at a job's end, by whole lines of output.

    line       a notice of one line
    opening    the first line of a longer notice, `closing` its last line
    words      text that every longer notice has, and other text between such lines has not
    """

    line: re.Pattern[bytes]
    opening: re.Pattern[bytes]
    closing: re.Pattern[bytes]
    words: re.Pattern[bytes]


class Target(ABC):
    """A way to start ranks: a program of this host that starts them, passes their output on and ends after them.

    Ranks must inherit or receive the variables of `environment`, and their standard output and error must reach
    those of the program. To add a target, write a subclass in a file of its own and enter it in `CLASSES`.

    banner        what `mpirun --version` of this MPI says; "" for a target that is chosen by --target only
    save_signal   the signal to the program that asks the ranks to save a checkpoint and end
    notices       what the program prints when a job ends, None if nothing
    """

    banner: ClassVar[str] = ""
    save_signal: ClassVar[signal.Signals] = signal.SIGTERM
    notices: ClassVar[Notices | None] = None

    def __init__(self, starter: str = "", version: str = "") -> None:
        self.starter, self.version = starter, version  # mpirun's path, and its answer to --version

    @abstractmethod
    def command(
        self, program: Sequence[str], ranks: int, hosts: Sequence[Host], environment: Mapping[str, str]
    ) -> list[str]:
        """The command that runs `program` on this many ranks.

        `hosts` have as many ranks together; without hosts the target chooses them: this one, or those of a batch
        system's allocation. The command itself is started with `environment`.
        """

    def variables(self, environment: Mapping[str, str], hosts: Sequence[Host]) -> dict[str, str]:
        """More variables for the command, such as time limits; none that the user has set."""
        return {}

    def make_elastic(self) -> None:
        """From now on `command` lets ranks continue without those that fail. DptrainError where that is impossible."""
        raise DptrainError(
            f"--elastic: only Open MPI 5 or later lets ranks continue without those that failed, and this is "
            f"{self.name}; use --max-restarts K instead"
        )

    @property
    def name(self) -> str:
        """As errors name it."""
        return type(self).__name__

    def outcome(self, returncode: int, output: str) -> Outcome:
        """The end of a job without a status record, by the program's return code (Popen's) and its last output.

        Without a record a job has failed, whatever the program returns.
        """
        program = self.starter.rpartition("/")[2] or self.name
        status = 128 - returncode if returncode < 0 else returncode or UNFORESEEN
        final = status in (USAGE, PREEMPTED)
        if returncode < 0:
            return Outcome(status, f"{program} was killed by {signal_name(-returncode)}", final=final)
        if returncode - 128 in signal.valid_signals():
            return Outcome(status, f"a rank was killed by {signal_name(returncode - 128)}", final=final)
        if returncode == 0:
            return Outcome(status, NO_RECORD.format(program), final=final)
        reason = f"{program} ended with status {returncode}{MEANINGS.get(returncode, '')}"
        return Outcome(status, reason, final=final, explained=False)


def forwarded_variables(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that ranks on other hosts need, and that of the launcher's address."""
    found = {name for name in environment if FORWARDED.fullmatch(name)} - {OWNER}
    return sorted(found | {VARIABLE})


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
