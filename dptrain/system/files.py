"""Files that anyone may have put there: regular files only, of bounded size; JSON and TOML without surprises.

Every function raises OSError with a `strerror` for people, or ValueError, so that a caller adds the path and makes it
one of its own errors: `raise DataError(f"{path}: cannot be read: {error.strerror}") from error`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from dptrain.system.text import shown

MIB = 1 << 20
LONGEST_TEXT_FILE = 8 * MIB  # bytes of a manifest or a configuration
LONGEST_NUMBER = 20  # characters of a whole number: enough for 64 bits and a sign
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, also through symbolic links; OSError for a pipe, device, socket or folder.

    Never waits: opening a named pipe would wait for a writer.
    """
    return open(_regular(path, os.O_RDONLY), "rb")


def read_bounded(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file of at most `most` bytes (None: as much as fits into this machine's memory).

    The size is checked before a byte is read. OSError as `open_regular`, with EFBIG for a file that is larger.
    """
    with open_regular(path) as file:
        return read_whole(file, most)


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(file: BufferedReader) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_whole(file: BufferedReader, most: int | None = None) -> bytes:
    """As `read_bounded`, of a file that was just opened."""
    size, most = size_of(file), memory_size() if most is None else most
    if size > most:
        raise OSError(errno.EFBIG, f"{size:,} bytes, expected at most {most:,}")
    try:
        content = file.read(size + 1)
    except MemoryError:
        raise OSError(errno.ENOMEM, f"out of memory reading {size:,} bytes") from None
    if len(content) > size:
        raise OSError(errno.EBUSY, "it grows while it is read")
    return content


def read_text(path: Path, most: int = LONGEST_TEXT_FILE) -> str:
    """A text file in UTF-8, with or without a byte order mark; OSError as `read_bounded`, or ValueError."""
    try:
        return read_bounded(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8: {error.reason} at byte {error.start:,}") from None


def append_text(path: Path) -> TextIO:
    """Open a text file in UTF-8 for appending; it is made if it is not there. OSError as `own_file`."""
    return open(path, "a", encoding="utf-8", opener=own_file)


def own_file(path: str | Path, flags: int) -> int:
    """A descriptor, also as the `opener` of `open`, of a file that is written: follows no symbolic link.

    OSError when the last part of the path is a link, or is there and no regular file. Never waits.
    """
    if os.path.islink(path):  # noqa: PTH114 - `open` gives the path as text
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed for writing", str(path))
    return _regular(path, flags | os.O_NOFOLLOW)


def _regular(path: str | Path, flags: int) -> int:
    """A descriptor of a regular file."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a named pipe that nobody reads
            raise OSError(errno.EINVAL, "is a socket or a pipe, expected a regular file", str(path)) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = next((name for test, name in KINDS if test(mode)), "of another kind")
    raise OSError(errno.EINVAL, f"is {kind}, expected a regular file", str(path))


def memory_size() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_json(text: str | bytes) -> Any:
    """The value of JSON text; ValueError, of bounded length, also for what Python's parser lets through.

    That is: deep nesting, whole numbers of more than 64 bits, NaN, infinities, a key that is given twice.
    """
    try:
        return json.loads(
            text, parse_int=_whole, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_each_key_once
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} in line {error.lineno:,}, column {error.colno:,}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The values of TOML text; ValueError, of bounded length, also for deep nesting and numbers of over 64 bits."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # tomllib's own, and that of a number with thousands of digits
        raise ValueError(shown(error, 300)) from None
    _check_numbers(values)
    return values


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(digits):,} characters, expected at most {LONGEST_NUMBER}")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text, 40)}, expected a finite one")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _check_numbers(value: Any) -> None:
    """ValueError for a whole number of over 64 bits; what tomllib has read is nested less deeply than Python can go."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("a whole number of more than 64 bits")
