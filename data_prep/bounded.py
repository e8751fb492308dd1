"""Limits for what a compressed file unpacks to, and for the members of archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import Protocol, Self

from dptrain.errors import DataError
from dptrain.system.text import shown

DEFLATED = 1032  # times the size of a file: the most that deflate, of gzip and zip, unpacks to
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


def check_compression(member: zipfile.ZipInfo) -> None:
    """DataError for a member of a zip archive that is encrypted, or not deflated: others unpack a piece to any size."""
    name = shown(member.filename)
    if member.flag_bits & 1:
        raise DataError(f"{name} is encrypted: make the archive again without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name} is compressed by another method than deflate: make the archive again")


class BoundedMember(tarfile.TarInfo):
    """A header of a tar archive. A damaged one is an error: tarfile takes it for the end of the archive.

    So is a long one, as Python before 3.11.10 and 3.12.6 needs a time that grows with the square of its length
    (CVE-2024-6232): 0.3 seconds for 8 KiB, an hour for 1 MiB.
    """

    largest_header = 1 << 13  # bytes of a long name or of pax records

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error or 'it ends before the end of the archive'}") from error

    @classmethod
    def frombuf(cls, content: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(content, encoding, errors)
        if member.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and member.size > cls.largest_header:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member
