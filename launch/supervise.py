"""A job from its first attempt to its last: started again after a failure, from the newest checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import dptrain
from dptrain.errors import FAILED, PREEMPTED, UNFORESEEN
from dptrain.system.files import append_text

from .attempt import run_attempt
from .binding import this_host
from .mpirun import Kind, mpirun_command
from .outcome import Outcome, signal_name
from .relay import say
from .signals import Signals, handled_signals
from .trainer import is_train, newest_step

PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What is to be run. `run_dir` must be there where `max_restarts` is above 0.

    Each restart has one rank fewer than the attempt that failed, but at least `min_ranks`.
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

    def command(self, ranks: int, *more: str) -> list[str]:
        """The command that runs the trainer with `more` arguments."""
        program = [sys.executable, *safe_path(), "-m", "dptrain", *self.trainer, *more]
        return mpirun_command(program, ranks, self.mpirun, self.kind, this_host(), elastic=self.elastic)


def safe_path() -> list[str]:
    """Python's flag that keeps the working directory out of the ranks' search path, where it is not needed.

    A folder named dptrain in there would be taken for this package. In a checkout that is not installed, only the
    working directory has the package.
    """
    home = Path(dptrain.__file__).parent.parent.resolve()
    others = sys.path if sys.flags.safe_path else sys.path[1:]
    return ["-P"] if any(Path(entry).resolve() == home for entry in others if entry) else []


def supervise(job: Job) -> int:
    """Run the job, restart it when it fails, and return the last attempt's status; DptrainError as `run_attempt`."""
    with handled_signals(job.kind, is_train(job.trainer)) as signals:
        attempt, ranks, step = 1, job.ranks, None
        while True:
            # The last --resume counts, whatever the user has given for the first attempt.
            resume = () if step is None else ("--resume", "auto")
            command = job.command(ranks, *resume)
            ended = after_signal(
                run_attempt(command, job.environment, signals, elastic=job.elastic), signals, job.elastic
            )
            step = None if job.run_dir is None else newest_step(job.run_dir)
            if job.max_restarts:
                record(job, attempt, ranks, ended, step)
            if signals.passed is not None or ended.final or attempt > job.max_restarts:
                return ended.status
            attempt, ranks = attempt + 1, max(ranks - 1, job.min_ranks)
            origin = "the beginning" if step is None else f"step {step:,}"
            say(f"starting again in {PAUSE_SECONDS:g} s on {count(ranks)} from {origin}")
            if signals.pause(PAUSE_SECONDS):
                say("a signal ended the job before it was started again")
                return PREEMPTED


def after_signal(ended: Outcome, signals: Signals, elastic: bool) -> Outcome:
    """The outcome, but that of a preempted run where ranks that did not handle the signal yet died of it.

    After a second signal Open MPI's mpirun ends with status 1, which is to say that signal.
    """
    if len(signals.received) > 1 and not ended.told and ended.status == FAILED:
        number = signals.received[-1]
        return replace(ended, status=128 + number, reason=f"ended by a second signal, {signal_name(number)}")
    if not signals.saves or signals.passed is None or len(signals.received) > 1:
        return ended
    all_died = elastic and ended.status == UNFORESEEN and not ended.told
    if ended.status != 128 + signals.passed and not all_died:
        return ended
    return replace(ended, status=PREEMPTED, reason="asked to end before it handled signals")


def count(ranks: int) -> str:
    """Ranks in words."""
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def record(job: Job, attempt: int, ranks: int, ended: Outcome, step: int | None) -> None:
    """Tell how an attempt ended, on standard error and in the run folder's attempts.jsonl."""
    if attempt > 1 or ended.status != 0:
        say(
            f"attempt {attempt} of {job.max_restarts + 1}, {count(ranks)}: status {ended.status} "
            f"after {ended.seconds:.1f} s: {ended.reason}"
        )
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
        with append_text(job.run_dir / "attempts.jsonl") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        say(f"{job.run_dir / 'attempts.jsonl'}: cannot be written: {error.strerror}")
