"""What is to be run, and what the launcher knows of the trainer: its command line and its run folder."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dptrain
from dptrain.config.files import read_toml
from dptrain.system.paths import typed_path

from .hosts import Host
from .targets.target import Target

STEP_LINE = re.compile(rb'"event": "(step|epoch)"')
TAIL_BYTES = 65536
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


def value_of(flag: str, trainer: Sequence[str]) -> str:
    """The value of a flag, `--flag X` or `--flag=X`, the last one where there are several; "" without one."""
    value = ""
    for word, following in zip(trainer, [*trainer[1:], ""], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value


def settings(trainer: Sequence[str]) -> dict[str, Any]:
    """What the file of --config says, nothing without one; UsageError where it cannot be read."""
    config = value_of("--config", trainer)
    return read_toml(Path(typed_path(config))) if config else {}


def run_dir_of(trainer: Sequence[str]) -> Path | None:
    """The run folder that flags or the file of --config name; UsageError where the file cannot be read."""
    named = value_of("--run-dir", trainer) or settings(trainer).get("run_dir", "")
    return Path(typed_path(named)) if named else None


def is_elastic(trainer: Sequence[str]) -> bool:
    """Whether the last of --elastic and --no-elastic is the first, or the file of --config says so without them."""
    given = [word for word in trainer if word in ("--elastic", "--no-elastic")]
    return given[-1] == "--elastic" if given else bool(settings(trainer).get("elastic", False))


@dataclass(frozen=True)
class Progress:
    """How far a run has come: the step of its newest checkpoint, None without one, and the steps that it has logged."""

    step: int | None
    metrics_bytes: int
    last_step_at: int  # where the last line of a step or epoch ends in metrics.jsonl, -1 if its last 64 KiB have none

    @classmethod
    def of(cls, run_dir: Path | None) -> Progress:
        """The progress that the files of a run folder show."""
        if run_dir is None:
            return cls(None, 0, -1)
        length, tail = 0, b""
        with contextlib.suppress(OSError), (run_dir / "metrics.jsonl").open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, length - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
        last = max((found.end() for found in STEP_LINE.finditer(tail)), default=None)
        return cls(newest_step(run_dir), length, -1 if last is None else start + last)

    def beyond(self, earlier: Progress) -> bool:
        """Whether a step was logged, or a newer checkpoint was written, since `earlier`."""
        newer = self.step is not None and (earlier.step is None or self.step > earlier.step)
        return newer or self.last_step_at > earlier.metrics_bytes


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest checkpoint by name, None where there is none."""
    names = (CHECKPOINT_NAME.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("*.h5"))
    return max((int(name[1]) for name in names if name), default=None)
