"""Result files that a user has named: never in the place of a file that runs and data sets need."""

from __future__ import annotations

from pathlib import Path

from dptrain.errors import UsageError
from dptrain.system.durable import write_durably
from dptrain.system.text import shown


def write_output(path: Path, content: bytes, flag: str = "") -> None:
    """Write a result, whole or not at all. A link is followed; a device or pipe, such as /dev/stdout, is written to.

    UsageError, which begins with the flag, for a file of a run or data set, and if the file cannot be written.
    """
    name = f"{flag}{' ' * bool(flag)}{shown(path)}"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as stream:
                stream.write(content)
            return
        path = path.resolve()
        if found := _needed_by(path):
            raise UsageError(f"{name}: is a file of a {found}; choose another name")
        write_durably(path, content)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{name}: cannot be written: {reason}; choose another file") from error


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
