"""A limit for what a compressed file unpacks to."""

from __future__ import annotations

import io
from typing import Protocol

from dptrain.errors import DataError

MOST_READS_AT_THE_END = 100


class Readable(Protocol):
    """A stream of bytes, which ends where a read gives fewer than asked for."""

    def read(self, size: int, /) -> bytes: ...


class BoundedStream(io.RawIOBase):
    """A stream that raises DataError(text) after `most` bytes, because a small .gz may unpack to terabytes.

    It raises EOFError after many reads at the end of the file, which tarfile makes to skip a member of a forged size.
    """

    def __init__(self, file: Readable, most: int, text: str) -> None:
        self._file, self._left, self._text = file, most, text
        self._reads_at_the_end = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        self._reads_at_the_end += not data
        if self._reads_at_the_end > MOST_READS_AT_THE_END:
            raise EOFError
        if self._left < 0:
            raise DataError(self._text)
        return data
