"""A job from its first attempt to its last: restarted after a failure, from the newest checkpoint."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dptrain
from dptrain.config.files import add_flags, read_toml
from dptrain.errors import PREEMPTED, DptrainError
from dptrain.system.files import append_text, read_bytes
from dptrain.system.paths import typed_path

from .attempt import run_attempt
from .hosts import first_places, reachable
from .output import report
from .signals import Signals
from .targets.target import Outcome, Target

FIRST_PAUSE = 1.0  # seconds; doubled after every attempt that made no step
LONGEST_PAUSE = 60.0
MOST_IN_VAIN = 8  # attempts in a row, over 3 minutes of pauses
STEP_LINE = re.compile(rb'"event": "(step|epoch)"')
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.h5")


@dataclass(frozen=True)
class Job:
    """What is to be run. `run_dir` is required if `max_restarts` is above 0; without hosts the target chooses them."""

    trainer: Sequence[str]
    ranks: int
    target: Target
    environment: Mapping[str, str]
    hosts: Mapping[str, int]
    max_restarts: int
    min_ranks: int
    run_dir: Path | None
    verbose: bool

    def command(self, ranks: int, hosts: Mapping[str, int], *more: str) -> list[str]:
        """The command that runs the trainer with `more` arguments."""
        program = [sys.executable, *safe_path(), "-m", "dptrain", *self.trainer, *more]
        return self.target.command(program, ranks, first_places(hosts, ranks), self.environment)


def safe_path() -> list[str]:
    """-P, so that a folder named dptrain in the working directory is not imported; [] if only it has the package."""
    home = Path(dptrain.__file__).parent.parent.resolve()
    others = sys.path if sys.flags.safe_path else sys.path[1:]
    return ["-P"] if any(Path(entry).resolve() == home for entry in others if entry) else []


def settings(trainer: Sequence[str]) -> dict[str, Any]:
    """`run_dir`, `elastic` and `resume` where flags or the file of --config set them; UsageError for the file."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--config", default="")
    add_flags(parser, ("run_dir", "elastic", "resume"))
    try:
        found = vars(parser.parse_known_args(trainer[1:] if trainer[0] == "train" else [])[0])
    except argparse.ArgumentError:  # the trainer reports it
        return {}
    config = found.pop("config")
    return (read_toml(Path(typed_path(config))) if config else {}) | found


def progress(run_dir: Path | None) -> tuple[int, int]:
    """The step of a run's newest checkpoint, by name, -1 without one; and the number of steps that it has logged."""
    if run_dir is None:
        return -1, 0
    names = (CHECKPOINT_NAME.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("*.h5"))
    newest = max((int(name[1]) for name in names if name), default=-1)
    try:
        logged = read_bytes(run_dir / "metrics.jsonl")
    except OSError:
        logged = b""
    return newest, len(STEP_LINE.findall(logged))


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

    def pause(self, made_steps: bool, begun: bool) -> tuple[float, str] | None:
        """The seconds to wait after an attempt that failed, and the reason; None if the job is not to be restarted."""
        self.in_vain = 0 if made_steps else self.in_vain + 1
        if made_steps or begun:
            if self.counted >= self.most:
                return None
            self.counted += 1
            self.ranks = max(self.ranks - 1, self.min_ranks)
            reason = f"restart {self.counted} of {self.most}"
        else:
            if self.most == 0 or self.in_vain > MOST_IN_VAIN:
                return None
            reason = f"no step was made: {self.in_vain} of {MOST_IN_VAIN}"
        return min(FIRST_PAUSE * 2.0 ** max(self.in_vain - 1, 0), LONGEST_PAUSE), reason


def supervise(job: Job) -> int:
    """Run the job, restart it when it fails, and return the last attempt's status."""
    restarts = Restarts(job.max_restarts, job.ranks, job.min_ranks)
    signals = Signals(job.target.save_signal if job.trainer[0] == "train" else None)
    signals.install()
    attempt = 0
    while True:
        attempt += 1
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
        seconds, why = pause
        on = f"{restarts.ranks} rank{'s' * (restarts.ranks > 1)}"
        report(f"restarting in {seconds:g} s on {on} from {origin} ({why})")
        if signals.pause(seconds):
            report("a signal ended the job before the restart")
            return PREEMPTED


def run_on_hosts(job: Job, attempt: int, ranks: int, step: int, signals: Signals) -> tuple[Outcome, int]:
    """One attempt, from the checkpoint of `step`, if it is not -1; its outcome and its number of ranks.

    With --min-ranks, hosts that cannot be reached are left out from the second attempt on, if enough ranks remain.
    """
    resume = () if attempt == 1 or step < 0 else ("--resume", "auto")
    hosts = job.hosts
    if attempt > 1 and job.min_ranks < job.ranks:
        there = reachable(hosts)
        left_out, room = [name for name in hosts if name not in there], sum(there.values())
        if left_out and room >= job.min_ranks:
            report(f"hosts that cannot be reached and are left out: {', '.join(left_out)}")
            hosts, ranks = there, min(ranks, room)
    command = job.command(ranks, hosts, *resume)
    try:
        return run_attempt(command, job.environment, job.target, signals, verbose=job.verbose), ranks
    except OSError as error:
        raise DptrainError(f"cannot start {command[0]}: {error}") from error


def report_end(job: Job, attempt: int, ranks: int, ended: Outcome) -> None:
    """Report the end of an attempt, except a success without restarts, and an error that the run has printed."""
    name = f"attempt {attempt} on {ranks} rank{'s' * (ranks > 1)}" if job.max_restarts else "the job"
    if ended.status == PREEMPTED and ended.reason:
        report(ended.reason)
    elif (ended.status and not ended.reported) or (job.max_restarts and (ended.status or attempt > 1)):
        why = f": {ended.reason}" if ended.reason and not ended.reported else ""
        report(f"{name} ended with status {ended.status} after {ended.seconds:.1f} s{why}")


def report_resume(job: Job, ended: Outcome) -> None:
    """Print the command that resumes a run that was stopped or may be retried, if it has a checkpoint."""
    if ended.status == 0 or job.trainer[0] != "train" or (ended.final and ended.status != PREEMPTED):
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
