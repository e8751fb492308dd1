"""Reading files that may be hostile: regular files of bounded size; JSON and TOML with errors of bounded length.

Every function raises OSError with a `strerror` for people, or ValueError. The caller adds the path:
`raise DataError(f"{path}: cannot be read: {error.strerror}") from error`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from dptrain.system.text import shown

MIB = 1 << 20
LONGEST_TEXT_FILE = 8 * MIB  # bytes of a manifest or a configuration


def append_text(path: Path) -> TextIO:
    """Open a text file in UTF-8 for appending, or create it; OSError if it is a symbolic link or not a regular file."""
    return open(path, "a", encoding="utf-8", opener=lambda path, flags: _regular(path, flags | os.O_NOFOLLOW))


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading in binary."""
    return open(path, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    """A descriptor of a regular file. Never waits: opening a named pipe would wait for its other end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """The content of a regular file, also through symbolic links, of at most `most` bytes (default: the memory).

    The size is checked before the file is read: OSError with EFBIG if it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if most is None else most
        if size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, expected at most {most:,}")
        return file.read(size)


def read_start(path: Path, count: int) -> tuple[bytes, int]:
    """The first bytes of a regular file, and its size."""
    with open_regular(path) as file:
        return file.read(count), os.fstat(file.fileno()).st_size


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; OSError as `read_bytes`, or ValueError."""
    try:
        return read_bytes(path, LONGEST_TEXT_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8: {error.reason} at byte {error.start:,}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text; ValueError of bounded length, also for a key that occurs twice in an object.

    See dptrain.system.fields for checking the value.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} in line {error.lineno:,}, column {error.colno:,}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object: programs disagree on which value of a repeated key counts."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {shown(repr(key), 80)} occurs twice")
        values[key] = value
    return values


def parse_toml(text: str) -> dict[str, Any]:
    """The values of TOML text; ValueError of bounded length, also for deep nesting."""
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # of tomllib, or of a number with thousands of digits
        raise ValueError(shown(error, 300)) from None
