"""Paths typed by users: `~` is expanded, and an impossible path is a UsageError."""

from __future__ import annotations

import os
from pathlib import Path

from dptrain.errors import UsageError
from dptrain.system.text import shown


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """A path that a program gives, with `~` expanded; it stays the same if the working directory changes later."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"found {shown(repr(path), 80)}, expected the path of a file or folder")
    return Path(os.path.abspath(typed_path(os.fspath(path))))  # noqa: PTH100 - without .. but with symbolic links


def typed_path(text: str) -> str:
    """The path with a leading `~` or `~user` expanded; UsageError for a path that cannot exist."""
    if not text.strip():
        raise UsageError("found an empty path; expected the path of a file or folder (is a shell variable unset?)")
    if "\0" in text:
        raise UsageError(f"{shown(text)}: a path cannot contain the character NUL")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = shown(text.partition("/")[0])
        raise UsageError(f"{shown(text)}: there is no user {user[1:]!r}; for a file, write ./{user}") from None
    if why := dangling(path):
        raise UsageError(f"{why}; give another path or correct the link")
    return str(path)


def dangling(path: Path) -> str | None:
    """An error text if the path, or a folder above it, is a dangling symbolic link; otherwise None."""
    try:
        for link in (path, *path.parents):
            if link.is_symlink() and not link.exists():
                return f"{shown(link)} is a symbolic link to {shown(link.readlink())}, which does not exist"
    except OSError:  # opening the path fails in the same way, and that error is reported
        pass
    return None
