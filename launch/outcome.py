"""How an attempt ended: its status, and the best known reason, in one line for people."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace

from dptrain.errors import FAILED, PREEMPTED, UNFORESEEN, USAGE
from dptrain.system.text import shown

from .records import Record
from .signals import Signals, described, signal_name

FINISHED = 0
MEANINGS = {126: ", as for a program that cannot be executed", 127: ", as for a program that is not found"}
REASON_CHARACTERS = 200

NO_RECORD = (
    "mpirun ended without an error, but the run has not reported its end: its ranks have died, or a host is lost"
)
BEFORE_HANDLING = "asked to end before it handled signals"
# Open MPI: "prterun noticed that process rank 0 with PID 15569 on node vm exited on\nsignal 9 (Killed)."
KILLED = re.compile(r"noticed that process rank (\d+) with PID \d+ on\s+node (\S+)\s+exited\s+on\s+signal (\d+)")
# "prterun has exited due to process rank 1 with PID 3635 on node vm exiting\nimproperly."
LEFT = re.compile(r"has exited due to process rank (\d+) with PID \d+ on\s+node (\S+)\s+exiting\s+improperly")
# "Process name: [prterun-vm-3438@1,1]\n   Exit code:    1"
EXITED = re.compile(r"Process name: \[[^\]\s]*,(\d+)\]\s+Exit code:\s+(\d+)")
# MPICH, on standard output: "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)"
MPICH_KILLED = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*\(signal (\d+)\)")


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt.

    status     exit status; 128 + the signal's number where one killed mpirun or a rank
    told       the job has printed the reason itself
    final      another attempt would end no better
    explained  the reason is known, so that nobody needs mpirun's notices
    record     what the run itself has reported, None if nothing
    rank_died  mpirun reports the death of a rank
    """

    status: int
    seconds: float
    reason: str
    told: bool
    final: bool
    explained: bool = True
    record: Record | None = None
    rank_died: bool = False


def outcome(returncode: int, seconds: float, record: Record | None, notices: str) -> Outcome:
    """What became of a job, from its record or else from mpirun's `returncode` (Popen's) and notices.

    Without a record a job has failed, whatever mpirun returns. A record of a signal is worth nothing if the signal was
    mpirun's own, which ends all ranks by SIGTERM after one has died.
    """
    by_mpirun = _outcome_of_mpirun(returncode, seconds, notices)
    if record is None or (record.status == PREEMPTED and "checkpoint" not in record.more and _died(by_mpirun)):
        return by_mpirun
    reason = shown(record.reason or ("finished" if record.status == FINISHED else "failed"))
    if len(reason) > REASON_CHARACTERS:
        reason = reason[: REASON_CHARACTERS - 3] + "..."
    told = record.status not in (FINISHED, PREEMPTED) and bool(record.reason)
    return Outcome(record.status, seconds, reason, told, final=not record.retry, record=record)


def _died(ended: Outcome) -> bool:
    return ended.rank_died and ended.status != PREEMPTED


def _outcome_of_mpirun(returncode: int, seconds: float, notices: str) -> Outcome:
    mpich = MPICH_KILLED.search(notices)
    status = 128 - returncode if returncode < 0 else returncode or UNFORESEEN
    if mpich and returncode == int(mpich[1]):  # mpiexec returns the bare number of the signal
        status += 128
    explained = True
    left, exited = LEFT.search(notices), EXITED.search(notices)
    if killed := KILLED.search(notices):
        reason = f"rank {killed[1]} on {killed[2]} was killed by {signal_name(int(killed[3]))}"
    elif mpich:
        reason = f"a rank was killed by {signal_name(int(mpich[1]))}"
    elif returncode < 0:
        reason = f"mpirun was killed by {signal_name(-returncode)}"
    elif left:
        reason = f"rank {left[1]} on {left[2]} ended without a word, as after os._exit"
    elif exited:
        reason = f"rank {exited[1]} ended with status {exited[2]} without a word"
    elif returncode - 128 in signal.valid_signals():
        reason = f"a rank was killed by {signal_name(returncode - 128)}"
    elif returncode == 0:
        reason = NO_RECORD
    else:
        reason, explained = f"mpirun ended with status {returncode}{MEANINGS.get(returncode, '')}", False
    final, rank_died = status in (USAGE, PREEMPTED), bool(killed or mpich or left or exited)
    return Outcome(status, seconds, shown(reason), False, final, explained, rank_died=rank_died)


def after_signal(ended: Outcome, signals: Signals) -> Outcome:
    """The outcome of a job that was asked to end by `signals`; where the job has no record of its own, by these."""
    if not signals.requests or signals.passed is None:
        return ended
    first, last = signals.requests[0], signals.requests[-1]
    if ended.record is not None:
        return replace(ended, reason=f"stopped by {described(first)}") if ended.status == PREEMPTED else ended
    vague = ended.status in (FAILED, UNFORESEEN, 128 + signals.passed, 128 + signal.SIGTERM)
    if len(signals.requests) > 1:
        reason = f"ended at once by a second signal, {described(last)}"
        return replace(ended, status=128 + last if vague else ended.status, reason=reason, final=True, explained=True)
    if not vague:
        return replace(ended, final=True)
    if not signals.saves:
        return replace(ended, status=128 + first, reason=f"ended by {described(first)}", final=True, explained=True)
    if ended.status not in (128 + signals.passed, UNFORESEEN):
        return replace(ended, final=True)
    # Ranks that do not handle the signal yet die of it.
    return replace(ended, status=PREEMPTED, reason=BEFORE_HANDLING, final=True, explained=True)
