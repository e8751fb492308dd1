"""What the launcher prints when an attempt ends: why, unless the job has said so, and how to resume."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dptrain.errors import PREEMPTED
from dptrain.system.text import shown

from .outcome import FINISHED, Outcome
from .screen import say
from .signals import Signals, described
from .trainer import is_train, newest_step, run_dir_of, settings, value_of


def report_end(ended: Outcome, signals: Signals, attempt: str = "") -> None:
    """Report the end of the job, or of its `attempt`, such as "attempt 1 of 3, 2 ranks", if there may be more."""
    if ended.status == PREEMPTED:
        say(f"{attempt}{': ' * bool(attempt)}{stopped(ended, signals)}")
    elif attempt:
        why = "" if ended.told else f": {ended.reason}"
        say(f"{attempt}: status {ended.status} after {ended.seconds:.1f} s{why}")
    elif ended.status != FINISHED and not ended.told:
        say(f"the job ended with status {ended.status} after {ended.seconds:.1f} s: {ended.reason}")


def stopped(ended: Outcome, signals: Signals) -> str:
    """In words: by which signal a run was stopped, and what is saved."""
    more = ended.record.more if ended.record is not None else {}
    if "checkpoint" in more:
        by = described(signals.requests[0]) if signals.requests else shown(more.get("by", "a signal"))
        return f"stopped by {by}: {shown(more['checkpoint'])} is saved"
    if not signals.requests:
        return ended.reason
    by = described(signals.requests[0])
    if ended.record is None:
        return f"stopped by {by} before the run handled signals; the checkpoints so far are kept"
    return f"stopped by {by} before the first step: nothing is lost"


def report_resume(ended: Outcome, launcher: Sequence[str], trainer: Sequence[str]) -> None:
    """Print the command that resumes a run that was stopped or may be retried, if it has a checkpoint."""
    if ended.status == FINISHED or not is_train(trainer) or (ended.final and ended.status != PREEMPTED):
        return
    more = ended.record.more if ended.record is not None else {}
    named = run_dir_of(trainer)
    run_dir = named or (Path(more["run_dir"]) if "run_dir" in more else None)
    if run_dir is None or ("checkpoint" not in more and newest_step(run_dir) is None):
        return
    words = [*launcher, "--", *trainer]
    if named is None:
        words += ["--run-dir", str(run_dir)]
    if (value_of("--resume", trainer) or settings(trainer).get("resume", "auto")) != "auto":
        words += ["--resume", "auto"]
    say(f"resume with:\n{shlex.join(words)}")
