"""A job from its first attempt to its last: restarted after a failure, from the newest checkpoint."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dptrain.errors import PREEMPTED
from dptrain.system.files import append_text
from dptrain.system.text import shown

from .attempt import run_attempt
from .hosts import first_places, places_of, reachable
from .job import Job, Progress, is_train, newest_step, settings
from .output import say
from .signals import Signals, described, handled_signals
from .status import FINISHED, Outcome

FIRST_PAUSE = 1.0  # seconds; doubled after every attempt that made no step
LONGEST_PAUSE = 60.0
MOST_IN_VAIN = 8  # attempts in a row, over 3 minutes of pauses


@dataclass
class Restarts:
    """The restarts of a job; at most `most` of them count, and each of those has one rank fewer, but `min_ranks`.

    A restart counts if the attempt before it made a step, or ended with a report of dptrain itself or the death of a
    rank. It does not count if the run did not begin, because a host cannot be reached for example: that may pass, and
    fewer ranks do not help.
    """

    most: int
    ranks: int
    min_ranks: int
    counted: int = 0
    in_vain: int = 0  # attempts in a row that made no step
    counts: bool = True  # whether the restart to come is counted

    def pause(self, made_steps: bool, reported: bool) -> float | None:
        """The seconds to wait after an attempt that failed; None if the job is not to be restarted."""
        self.in_vain = 0 if made_steps else self.in_vain + 1
        self.counts = made_steps or reported
        if self.counts:
            if self.counted >= self.most:
                return None
            self.counted += 1
            self.ranks = max(self.ranks - 1, self.min_ranks)
        elif self.most == 0 or self.in_vain > MOST_IN_VAIN:
            return None
        return min(FIRST_PAUSE * 2.0 ** max(self.in_vain - 1, 0), LONGEST_PAUSE)


def supervise(job: Job) -> int:
    """Run the job, restart it when it fails, and return the last attempt's status; DptrainError as `run_attempt`."""
    restarts = Restarts(job.max_restarts, job.ranks, job.min_ranks)
    with handled_signals(job.target.save_signal if is_train(job.trainer) else None) as signals:
        for attempt in itertools.count(1):
            before = Progress.of(job.run_dir)
            ended, ranks = run_on_hosts(job, attempt, restarts.ranks, before.step, signals)
            step = -1 if job.run_dir is None else newest_step(job.run_dir)
            name = f"attempt {attempt}, {count(ranks)}"
            report_end(ended, signals, name if job.max_restarts and (attempt > 1 or ended.status != 0) else "")
            if job.max_restarts:
                log_attempt(job, attempt, ranks, ended, step)
            pause = None
            if signals.passed is None and not ended.final:
                pause = restarts.pause(before.is_exceeded(job.run_dir), ended.record is not None or ended.rank_died)
            if pause is None:
                report_resume(ended, job)
                return ended.status
            say(restart_line(restarts, pause, step))
            if signals.pause(pause):
                say("a signal ended the job before it was started again")
                return PREEMPTED
    raise AssertionError("counting does not end")


def run_on_hosts(job: Job, attempt: int, ranks: int, step: int, signals: Signals) -> tuple[Outcome, int]:
    """One attempt, from the checkpoint of `step`, -1 for the beginning; its outcome and its number of ranks.

    With --min-ranks, hosts that cannot be reached are left out from the second attempt on, if enough ranks remain.
    """
    # The last --resume counts, whatever the user has given for the first attempt.
    resume = () if attempt == 1 or step < 0 else ("--resume", "auto")
    hosts = job.hosts
    if attempt > 1 and job.min_ranks < job.ranks:
        there = reachable(hosts)
        if len(there) < len(hosts) and places_of(there) >= job.min_ranks:
            gone = ", ".join(host.name for host in hosts if host not in there)
            say(f"cannot be reached and left out: {gone}")
            hosts, ranks = there, min(ranks, places_of(there))
    command = job.command(ranks, first_places(hosts, ranks), *resume)
    return run_attempt(command, job.environment, job.target, signals, verbose=job.verbose), ranks


def restart_line(restarts: Restarts, pause: float, step: int) -> str:
    """What to print about a restart before its pause, in seconds."""
    origin = "the beginning" if step < 0 else f"step {step:,}"
    why = f"restart {restarts.counted} of {restarts.most}"
    if not restarts.counts:
        why = f"no step was made: {restarts.in_vain} of {MOST_IN_VAIN}"
    return f"starting again in {pause:g} s on {count(restarts.ranks)} from {origin} ({why})"


def count(ranks: int) -> str:
    """Ranks in words."""
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def report_end(ended: Outcome, signals: Signals, attempt: str) -> None:
    """Report the end of the job, or of its `attempt`, such as "attempt 1, 2 ranks", if there may be more."""
    if ended.status == PREEMPTED:
        say(f"{attempt}{': ' * bool(attempt)}{stopped(ended, signals)}")
    elif attempt:
        why = "" if ended.printed else f": {ended.reason}"
        say(f"{attempt}: status {ended.status} after {ended.seconds:.1f} s{why}")
    elif ended.status != FINISHED and not ended.printed:
        say(f"the job ended with status {ended.status} after {ended.seconds:.1f} s: {ended.reason}")


def stopped(ended: Outcome, signals: Signals) -> str:
    """In words: by which signal a run was stopped, and what is saved."""
    more = ended.more
    by = described(signals.requests[0]) if signals.requests else ""
    if "checkpoint" in more:
        return f"stopped by {by or shown(more.get('by', 'a signal'))}: {shown(more['checkpoint'])} is saved"
    if not by:
        return ended.reason
    if ended.record is None:
        return f"stopped by {by} before the run handled signals; the checkpoints so far are kept"
    return f"stopped by {by} before the first step: nothing is lost"


def report_resume(ended: Outcome, job: Job) -> None:
    """Print the command that resumes a run that was stopped or may be retried, if it has a checkpoint."""
    if ended.status == FINISHED or not is_train(job.trainer) or (ended.final and ended.status != PREEMPTED):
        return
    given, more = settings(job.trainer), ended.more
    run_dir = given.get("run_dir") or more.get("run_dir")
    if not run_dir or ("checkpoint" not in more and newest_step(Path(run_dir)) < 0):
        return
    words = [*job.launcher, "--", *job.trainer]
    if not given.get("run_dir"):
        words += ["--run-dir", run_dir]
    if given.get("resume", "auto") != "auto":
        words += ["--resume", "auto"]
    say(f"resume with:\n{shlex.join(words)}")


def log_attempt(job: Job, attempt: int, ranks: int, ended: Outcome, step: int) -> None:
    """Log how an attempt ended in the run folder's attempts.jsonl."""
    # The trainer refuses a folder with anything in it but a run.
    if job.run_dir is None or not (job.run_dir / "checkpoints").is_dir():
        return
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempt": attempt,
        "ranks": ranks,
        "seconds": round(ended.seconds, 3),
        "status": ended.status,
        "reason": ended.reason,
        "checkpoint_step": None if step < 0 else step,
    }
    try:
        with append_text(job.run_dir / "attempts.jsonl") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        say(f"{job.run_dir / 'attempts.jsonl'}: cannot be written: {error.strerror}")
