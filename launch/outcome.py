"""How an attempt ended: its status, and the best known reason, in a few words for people."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from dptrain.errors import FAILED, PREEMPTED, UNFORESEEN, USAGE

FINISHED = 0
REASON_CHARACTERS = 200

# Open MPI: "prterun noticed that process rank 0 with PID 15569 on node vm exited on\nsignal 9 (Killed)."
OPEN_MPI_NOTICE = re.compile(
    r"noticed that process rank (\d+) with PID \d+ on\s+node (\S+)\s+exited\s+on\s+signal (\d+)"
)
# MPICH, on standard output: "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)"
MPICH_NOTICE = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*\(signal (\d+)\)")


@dataclass(frozen=True)
class Outcome:
    """`status` is 128 + the signal's number where one killed mpirun or a rank; `told` says that dptrain told why."""

    status: int
    seconds: float
    reason: str
    told: bool

    @property
    def final(self) -> bool:
        """Whether another attempt would end no better.

        An error that dptrain tells with status 1 is one that a restart would meet again: wrong data, a full
        disk, a loss that is not finite.
        """
        return self.status in (FINISHED, USAGE, PREEMPTED) or (self.status == FAILED and self.told)


def outcome(returncode: int, seconds: float, told: str | None, notices: str) -> Outcome:
    """What became of mpirun, from its `returncode` (Popen's), dptrain's error and what it wrote last itself."""
    mpich = MPICH_NOTICE.search(notices)
    status = 128 - returncode if returncode < 0 else returncode
    if mpich and returncode == int(mpich[1]):  # mpiexec returns the bare number of the signal
        status += 128
    if told:
        reason = told if len(told) <= REASON_CHARACTERS else told[: REASON_CHARACTERS - 3] + "..."
    elif open_mpi := OPEN_MPI_NOTICE.search(notices):
        reason = f"rank {open_mpi[1]} on {open_mpi[2]} was killed by {signal_name(int(open_mpi[3]))}"
    elif mpich:
        reason = f"a rank was killed by {signal_name(int(mpich[1]))}"
    elif returncode < 0:
        reason = f"mpirun was killed by {signal_name(-returncode)}"
    elif returncode > 128:
        reason = f"a rank was killed by {signal_name(returncode - 128)}"
    else:
        known = {FINISHED: "finished", PREEMPTED: "asked to end", UNFORESEEN: "all ranks have died"}
        reason = known.get(returncode, "no reason was told")
    return Outcome(status, seconds, reason, told is not None)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
