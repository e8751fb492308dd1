"""Writing a file so that it exists whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".*.partial"  # pattern of what a killed writer leaves behind
PIECE = 1 << 24  # bytes written at a time


def write_durably(path: Path, content: bytes) -> None:
    """Write, sync, read back, rename, sync the folder: after a crash the file is the old one or the new one.

    OSError when that fails: no temporary file is left, and the old file is unchanged unless only the last sync failed.
    """
    with _replacing(path) as temporary:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            left = memoryview(content)
            while left:  # a call may write less than it was given
                left = left[os.write(file, left[:PIECE]) :]
            os.fsync(file)
        finally:
            os.close(file)
        if temporary.read_bytes() != content:
            raise OSError(errno.EIO, "the content read back differs from the content written")


def link_durably(existing: Path, path: Path) -> None:
    """Replace `path` by a hard link to the file `existing`, durably; OSError when that fails."""
    with _replacing(path) as temporary:
        os.link(existing, temporary)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A free name in the same folder. The file that gets it replaces `path`, or is removed after an error."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)  # of a killed writer
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 - os, so that tests can make each call fail in one place
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # it still exists if `path` was a link to the same file


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
