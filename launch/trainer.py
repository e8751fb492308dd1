"""What the launcher knows of the trainer: its command line and the checkpoints in its run folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dptrain.config import read_toml
from dptrain.system.paths import typed_path

CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.h5")


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
    said = [word for word in trainer if word in ("--elastic", "--no-elastic")]
    return said[-1] == "--elastic" if said else bool(settings(trainer).get("elastic", False))


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest checkpoint by name, None where there is none."""
    names = (CHECKPOINT_NAME.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("*.h5"))
    return max((int(name[1]) for name in names if name), default=None)
