"""What is to be run, and what the launcher reads of the trainer's command line and run folder."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dptrain
from dptrain.config.files import add_flags, read_toml
from dptrain.system.paths import typed_path

from .hosts import Host
from .targets.target import Target

STEP_LINE = re.compile(rb'"event": "(step|epoch)"')
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.h5")


@dataclass(frozen=True)
class Job:
    """What is to be run. `run_dir` is required if `max_restarts` is above 0; `Restarts` says when it is started again.

    `hosts` have room for `ranks`; without hosts the target chooses them. `launcher` is the launcher's command line, by
    which the job can be started again.
    """

    trainer: Sequence[str]
    ranks: int
    target: Target
    environment: Mapping[str, str]
    hosts: Sequence[Host] = ()
    max_restarts: int = 0
    min_ranks: int = 1
    run_dir: Path | None = None
    verbose: bool = False
    launcher: Sequence[str] = ()

    def command(self, ranks: int, hosts: Sequence[Host], *more: str) -> list[str]:
        """The command that runs the trainer with `more` arguments."""
        program = [sys.executable, *safe_path(), "-m", "dptrain", *self.trainer, *more]
        return self.target.command(program, ranks, hosts, self.environment)


def safe_path() -> list[str]:
    """Python's flag that keeps the working directory out of the ranks' search path, where it is not needed.

    A folder named dptrain in there would be taken for this package. In a checkout that is not installed, only the
    working directory has the package.
    """
    home = Path(dptrain.__file__).parent.parent.resolve()
    others = sys.path if sys.flags.safe_path else sys.path[1:]
    return ["-P"] if any(Path(entry).resolve() == home for entry in others if entry) else []


def is_train(trainer: Sequence[str]) -> bool:
    """Whether the command is `dptrain train`."""
    return trainer[0] == "train"


def settings(trainer: Sequence[str]) -> dict[str, Any]:
    """`run_dir`, `elastic` and `resume` where flags or the file of --config set them; UsageError for the file."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--config", default="")
    add_flags(parser, ("run_dir", "elastic", "resume"))
    try:
        found = vars(parser.parse_known_args(trainer[1:] if is_train(trainer) else [])[0])
    except argparse.ArgumentError:  # the trainer reports it
        return {}
    config = found.pop("config")
    return (read_toml(Path(typed_path(config))) if config else {}) | found


@dataclass(frozen=True)
class Progress:
    """How far a run has come: the step of its newest checkpoint, -1 without one, and the length of metrics.jsonl."""

    step: int
    metrics_bytes: int

    @classmethod
    def of(cls, run_dir: Path | None) -> Progress:
        """The progress that the files of a run folder show."""
        metrics = run_dir / "metrics.jsonl" if run_dir is not None else None
        size = metrics.stat().st_size if metrics is not None and metrics.exists() else 0
        return cls(-1 if run_dir is None else newest_step(run_dir), size)

    def is_exceeded(self, run_dir: Path | None) -> bool:
        """Whether the run has since logged a step or written a newer checkpoint."""
        if run_dir is None or newest_step(run_dir) > self.step:
            return run_dir is not None
        with contextlib.suppress(OSError), (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(self.metrics_bytes)
            return any(STEP_LINE.search(line) for line in file)
        return False


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint by name, -1 where there is none."""
    names = (CHECKPOINT_NAME.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("*.h5"))
    return max((int(name[1]) for name in names if name), default=-1)
