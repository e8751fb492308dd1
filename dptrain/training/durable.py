"""Writing a file so that it is there whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write, sync, read back, rename, sync the folder: after a crash the file is the old one or the new one.

    OSError when that fails; then the old file is untouched and no temporary one is left.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != content:
            raise OSError(errno.EIO, "what was read back is not what was written")
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
