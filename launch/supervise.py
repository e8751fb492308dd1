"""A job from its first attempt to its last: started again after a failure, from the newest checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dptrain.errors import PREEMPTED

from .attempt import run_attempt
from .binding import this_host
from .mpirun import Kind, mpirun_command
from .outcome import Outcome
from .report import report_end, report_resume
from .screen import say
from .signals import handled_signals
from .trainer import is_train, newest_step

PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What is to be run. `run_dir` must be there where `max_restarts` is above 0.

    Each restart has one rank fewer than the attempt that failed, but at least `min_ranks`. `again` is the launcher's
    command line, by which the job can be started again.
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
        return mpirun_command(program, ranks, self.mpirun, self.kind, this_host(), elastic=self.elastic)


def supervise(job: Job) -> int:
    """Run the job, restart it when it fails, and return the last attempt's status; DptrainError as `run_attempt`."""
    with handled_signals(job.kind, is_train(job.trainer)) as signals:
        attempt, ranks, step = 1, job.ranks, None
        while True:
            # The last --resume counts, whatever the user has given for the first attempt.
            resume = () if step is None else ("--resume", "auto")
            command = job.command(ranks, *resume)
            ended = run_attempt(command, job.environment, signals, verbose=job.verbose)
            step = None if job.run_dir is None else newest_step(job.run_dir)
            name = f"attempt {attempt} of {job.max_restarts + 1}, {count(ranks)}"
            report_end(ended, signals, name if job.max_restarts and (attempt > 1 or ended.status != 0) else "")
            if job.max_restarts:
                record(job, attempt, ranks, ended, step)
            if signals.passed is not None or ended.final or attempt > job.max_restarts:
                report_resume(ended, job.again, job.trainer)
                return ended.status
            attempt, ranks = attempt + 1, max(ranks - 1, job.min_ranks)
            origin = "the beginning" if step is None else f"step {step:,}"
            say(f"starting again in {PAUSE_SECONDS:g} s on {count(ranks)} from {origin}")
            if signals.pause(PAUSE_SECONDS):
                say("a signal ended the job before it was started again")
                return PREEMPTED


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
