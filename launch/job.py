"""What is to be run, and what the launcher reads of the trainer's command line and run folder."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dptrain
from dptrain.config.files import read_toml
from dptrain.config.flags import add_flags
from dptrain.system.paths import typed_path

from .hosts import first_places
from .targets.target import Target

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
    """Python's flag that keeps the working directory out of the ranks' search path, where it is not needed.

    A folder named dptrain in there would be taken for this package. If a checkout is not installed, only the working
    directory has the package.
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


def progress(run_dir: Path | None) -> tuple[int, int]:
    """The step of a run's newest checkpoint, by name, -1 without one; and the number of steps that it has logged."""
    if run_dir is None:
        return -1, 0
    names = (CHECKPOINT_NAME.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("*.h5"))
    newest = max((int(name[1]) for name in names if name), default=-1)
    try:
        with (run_dir / "metrics.jsonl").open("rb") as lines:
            return newest, sum(STEP_LINE.search(line) is not None for line in lines)
    except OSError:
        return newest, 0
