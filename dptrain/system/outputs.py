"""Result files that a user has named: never in the place of a file that runs and data sets need."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from dptrain.errors import UsageError
from dptrain.system.durable import write_durably
from dptrain.system.text import shown

MOST_LINKS = 40  # one after the other, as in Linux


def write_output(path: Path, content: bytes, flag: str = "") -> None:
    """Write a result to a file, whole or not at all. A link is followed; a device, pipe or /dev/stdout is written to.

    UsageError, which begins with the flag, for a file of a run or data set, and if the file cannot be written.
    """
    name = f"{flag} {shown(path)}" if flag else shown(path)
    try:
        if (number := _descriptor(path)) is not None:
            sys.stdout.flush()  # what was printed before comes first
            with os.fdopen(os.dup(number), "wb") as stream:
                stream.write(content)
        elif path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
        elif found := _needed_by(path.resolve()):
            raise UsageError(f"{name}: belongs to a {found}; choose another name")
        else:
            write_durably(path.resolve(), content)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{name}: cannot be written: {reason}; choose another file") from error


def _descriptor(path: Path) -> int | None:
    """The number of the open file that a path stands for. To open it again would begin at its start."""
    for _ in range(MOST_LINKS):
        if found := re.fullmatch(r"/dev/std(out|err)|/(?:dev|proc/self)/fd/(\d{1,9})", str(path)):
            return int(found[2]) if found[2] else {"out": 1, "err": 2}[found[1]]
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _needed_by(path: Path) -> str:
    """What needs the file of this name; "" if nothing does."""
    folder = path.parent
    if (folder / "manifest.json").is_file() and (path.name == "manifest.json" or path.suffix == ".h5"):
        return f"data set, {shown(folder)}"
    if folder.name == "checkpoints" and (folder.parent / "config.toml").is_file() and path.suffix == ".h5":
        return f"run, {shown(folder.parent)}"
    if path.name in ("config.toml", "metrics.jsonl") and (folder / "checkpoints").is_dir():
        return f"run, {shown(folder)}"
    return ""
