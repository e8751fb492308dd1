"""A job from its first attempt to its last: started again after a failure, from the newest checkpoint."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dptrain.errors import PREEMPTED

from .attempt import run_attempt
from .binding import this_host
from .hosts import reachable_hosts
from .mpirun import Kind, forwarded_variables, mpirun_command
from .outcome import Outcome
from .report import report_end, report_resume
from .restarts import MOST_IN_VAIN, Restarts
from .screen import say
from .signals import Signals, handled_signals
from .trainer import Progress, is_train


@dataclass(frozen=True)
class Job:
    """What is to be run. `run_dir` is required if `max_restarts` is above 0; `Restarts` says when it is started again.

    `again` is the launcher's command line, by which the job can be started again.
    """

    trainer: Sequence[str]
    ranks: int
    mpirun: str
    kind: Kind
    environment: Mapping[str, str]
    max_restarts: int = 0
    min_ranks: int = 1
    run_dir: Path | None = None
    elastic: bool = False
    verbose: bool = False
    again: Sequence[str] = ()

    def command(self, ranks: int, *more: str) -> list[str]:
        """The command that runs the trainer with `more` arguments."""
        program = [sys.executable, "-m", "dptrain", *self.trainer, *more]
        forwarded = forwarded_variables(self.environment)
        return mpirun_command(
            program, ranks, self.mpirun, self.kind, this_host(), elastic=self.elastic, forwarded=forwarded
        )


def supervise(job: Job) -> int:
    """Run the job, restart it when it fails, and return the last attempt's status; DptrainError as `run_attempt`."""
    restarts = Restarts(job.max_restarts, job.ranks, job.min_ranks)
    with handled_signals(job.kind, is_train(job.trainer)) as signals:
        for attempt in itertools.count(1):
            before = Progress.of(job.run_dir)
            ended, ranks = run_on_hosts(job, attempt, restarts.ranks, before.step, signals)
            after = Progress.of(job.run_dir)
            name = f"attempt {attempt}, {count(ranks)}"
            report_end(ended, signals, name if job.max_restarts and (attempt > 1 or ended.status != 0) else "")
            if job.max_restarts:
                record(job, attempt, ranks, ended, after.step)
            pause = None
            if signals.passed is None and not ended.final:
                pause = restarts.pause(after.beyond(before), ended.record is not None or ended.rank_died)
            if pause is None:
                report_resume(ended, job.again, job.trainer)
                return ended.status
            say(restart_line(restarts, pause, after.step))
            if signals.pause(pause):
                say("a signal ended the job before it was started again")
                return PREEMPTED
    raise AssertionError("counting does not end")


def run_on_hosts(job: Job, attempt: int, ranks: int, step: int | None, signals: Signals) -> tuple[Outcome, int]:
    """One attempt, from the checkpoint of `step`, None for the beginning; its outcome and its number of ranks.

    From the second attempt on, hosts that cannot be reached are left out if that leaves enough ranks.
    """
    # The last --resume counts, whatever the user has given for the first attempt.
    resume = () if attempt == 1 or step is None else ("--resume", "auto")
    environment = job.environment
    with ExitStack() as until_ended:
        if attempt > 1 and job.min_ranks < job.ranks:
            found = reachable_hosts(job.kind, environment, ranks, job.min_ranks)
            environment, ranks = until_ended.enter_context(found)
        return run_attempt(job.command(ranks, *resume), environment, signals, verbose=job.verbose), ranks


def restart_line(restarts: Restarts, pause: float, step: int | None) -> str:
    """What to say of a restart before its pause, in seconds."""
    origin = "the beginning" if step is None else f"step {step:,}"
    why = f"restart {restarts.counted} of {restarts.most}"
    if not restarts.counts:
        why = f"no step was made: {restarts.in_vain} of {MOST_IN_VAIN}"
    return f"starting again in {pause:g} s on {count(restarts.ranks)} from {origin} ({why})"


def count(ranks: int) -> str:
    """Ranks in words."""
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def record(job: Job, attempt: int, ranks: int, ended: Outcome, step: int | None) -> None:
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
        "checkpoint_step": step,
    }
    try:
        with (job.run_dir / "attempts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        say(f"{job.run_dir / 'attempts.jsonl'}: cannot be written: {error.strerror}")
