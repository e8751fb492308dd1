"""A job from its first attempt to its last: restarted after a failure, from the newest checkpoint."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dptrain.errors import PREEMPTED
from dptrain.system.files import append_text

from .attempt import run_attempt
from .hosts import reachable
from .job import Job, is_train, progress, settings
from .output import report
from .signals import Signals, handled_signals
from .status import Outcome

FIRST_PAUSE = 1.0  # seconds; doubled after every attempt that made no step
LONGEST_PAUSE = 60.0
MOST_IN_VAIN = 8  # attempts in a row, over 3 minutes of pauses


@dataclass
class Restarts:
    """The restarts of a job; at most `most` of them count, and each of those has one rank fewer, but `min_ranks`.

    A restart counts if the attempt before it made a step, or ended with a record or the death of a rank. Otherwise the
    run did not begin, for example because a host cannot be reached: that may pass, and fewer ranks do not help.
    """

    most: int
    ranks: int
    min_ranks: int
    counted: int = 0
    in_vain: int = 0  # attempts in a row that made no step
    counts: bool = True  # whether the next restart is counted

    def pause(self, made_steps: bool, begun: bool) -> float | None:
        """The seconds to wait after an attempt that failed; None if the job is not to be restarted."""
        self.in_vain = 0 if made_steps else self.in_vain + 1
        self.counts = made_steps or begun
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
            before = progress(job.run_dir)
            ended, ranks = run_on_hosts(job, attempt, restarts.ranks, before[0], signals)
            after = progress(job.run_dir)
            report_end(job, attempt, ranks, ended)
            log_attempt(job, attempt, ranks, ended, after[0])
            pause = None
            if signals.passed is None and not ended.final:
                made_steps = any(new > old for new, old in zip(after, before, strict=True))
                pause = restarts.pause(made_steps, ended.reported or ended.rank_died)
            if pause is None:
                report_resume(job, ended)
                return ended.status
            origin = "the beginning" if after[0] < 0 else f"step {after[0]:,}"
            why = f"restart {restarts.counted} of {restarts.most}"
            if not restarts.counts:
                why = f"no step was made: {restarts.in_vain} of {MOST_IN_VAIN}"
            report(f"restarting in {pause:g} s on {rank_count(restarts.ranks)} from {origin} ({why})")
            if signals.pause(pause):
                report("a signal ended the job before the restart")
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
        room = sum(there.values())
        if len(there) < len(hosts) and room >= job.min_ranks:
            report(f"hosts that cannot be reached and are left out: {', '.join(hosts.keys() - there.keys())}")
            hosts, ranks = there, min(ranks, room)
    command = job.command(ranks, hosts, *resume)
    return run_attempt(command, job.environment, job.target, signals, verbose=job.verbose), ranks


def rank_count(ranks: int) -> str:
    """Ranks in words."""
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def report_end(job: Job, attempt: int, ranks: int, ended: Outcome) -> None:
    """Report the end of an attempt, except a success without restarts, and an error that the run has printed."""
    name = f"attempt {attempt} on {rank_count(ranks)}" if job.max_restarts else "the job"
    if ended.status == PREEMPTED:
        report(ended.reason)
    elif (ended.status and not ended.printed) or (job.max_restarts and (ended.status or attempt > 1)):
        why = f": {ended.reason}" if ended.reason and not ended.printed else ""
        report(f"{name} ended with status {ended.status} after {ended.seconds:.1f} s{why}")


def report_resume(job: Job, ended: Outcome) -> None:
    """Print the command that resumes a run that was stopped or may be retried, if it has a checkpoint."""
    if ended.status == 0 or not is_train(job.trainer) or (ended.final and ended.status != PREEMPTED):
        return
    given = settings(job.trainer)
    run_dir = given.get("run_dir") or ended.more.get("run_dir")
    if not run_dir or ("checkpoint" not in ended.more and progress(Path(run_dir))[0] < 0):
        return
    words = [*itertools.takewhile(lambda word: word != "--", sys.orig_argv), "--", *job.trainer]
    if not given.get("run_dir"):
        words += ["--run-dir", run_dir]
    if given.get("resume", "auto") != "auto":
        words += ["--resume", "auto"]
    report(f"resume with:\n{shlex.join(words)}")


def log_attempt(job: Job, attempt: int, ranks: int, ended: Outcome, step: int) -> None:
    """Log how an attempt of a job with restarts ended in the run folder's attempts.jsonl."""
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
        report(f"{job.run_dir / 'attempts.jsonl'}: cannot be written: {error.strerror}")
