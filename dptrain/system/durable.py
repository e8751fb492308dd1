"""Writing a file so that it is there whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

TEMPORARY = ".*.partial"  # as a pattern: what a writer that was killed leaves behind
PIECE = 1 << 24  # bytes written at a time


def write_durably(path: Path, content: bytes) -> None:
    """Write, sync, read back, rename, sync the folder: after a crash the file is the old one or the new one.

    OSError when that fails; then no temporary file is left, and the old file is untouched unless all that failed
    is to sync the folder: then the new file has taken its place already.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # what a killed writer left, or a link that somebody has laid there
    try:
        _write_and_sync(temporary, content)
        if temporary.read_bytes() != content:
            raise OSError(errno.EIO, "what was read back is not what was written")
        os.replace(temporary, path)  # noqa: PTH105 - os, so that tests can make each call fail in one place
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def link_durably(existing: Path, path: Path) -> None:
    """Let `path` be another name of the file `existing`, durably and in place of whatever has that name.

    OSError when that fails, also on file systems that have no such links; then no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)
        os.link(existing, temporary)
        os.replace(temporary, path)  # noqa: PTH105
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # it is still there if `path` was that file already


def _write_and_sync(path: Path, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:  # a call may write less than it was given
            left = left[os.write(file, left[:PIECE]) :]
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Make a rename last: it is an entry of the folder that must reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
