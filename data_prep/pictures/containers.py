"""Files in a folder, a zip archive or a tar archive, by name.

An archive may be hostile. Nothing is extracted to the disk; an archive with a name outside its folder, a link or a
device is refused whole, and so is one that unpacks to far more than pictures do.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from dptrain.errors import DataError
from dptrain.system.files import open_regular
from dptrain.system.text import shown

from .. import report
from ..bounded import BoundedMember, BoundedStream, Readable, check_compression
from ..source_file import errors_of

TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")
PIECE = 1 << 16  # bytes that are unpacked at a time
LARGEST_FILE = 256 << 20  # bytes of one picture's file
MOST_UNPACKED = 100  # times the size of the archive: pictures are compressed already
SLACK = 1 << 20  # bytes that a small archive may unpack to besides
TOO_MUCH = f"unpacks to more than {MOST_UNPACKED} times its size, and pictures do not: it may be hostile"
COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], Readable]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
# What zipfile, tarfile and what unpacks for them raise for a damaged archive.
DAMAGED = (
    EOFError, ValueError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, tarfile.TarError,
    gzip.BadGzipFile
)  # fmt: skip
HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX/)")  # hidden files, and what macOS adds to a zip archive


Contents = Callable[[Sequence[int]], Iterator[tuple[int, bytes | str]]]


@dataclass(frozen=True)
class Container:
    """Names of files and of folders, with / between their parts, each sorted; hidden ones are left out.

    `contents(numbers)` gives the content of these files, by their places in `files`, in any order: pairs of a number
    and bytes, or a path from which they can be read.
    """

    files: list[str]
    folders: list[str]
    contents: Contents


def is_archive(path: Path) -> bool:
    """Whether a file has the name of an archive that can be opened."""
    return path.is_file() and path.name.lower().endswith((".zip", *TAR_SUFFIXES))


def stem(path: Path) -> str:
    """The name of a folder, or of an archive without its suffix."""
    path = path.resolve()
    suffix = next((suffix for suffix in (".zip", *TAR_SUFFIXES) if path.name.lower().endswith(suffix)), "")
    return path.name[: -len(suffix)] if suffix and not path.is_dir() else path.name


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The files at `path`, a folder or an archive; DataError for what cannot be read or is refused."""
    with ExitStack() as until_closed:
        with errors_of(path, DAMAGED, "archive"):
            if path.is_dir():
                container = _folder(path)
            elif path.name.lower().endswith(".zip"):
                file = until_closed.enter_context(open_regular(path))
                container = _zip(path, until_closed.enter_context(zipfile.ZipFile(file)))
            else:
                container = _tar(path)
        yield container


def _folder(top: Path) -> Container:
    """All files below a folder, also through symbolic links to files and folders.

    A folder is listed once: by its own name if it is below `top`, else by the first link to it.
    """
    files: list[str] = []
    folders: list[str] = []
    known: set[tuple[int, int]] = set()  # identities of the folders that are listed
    starts, repeated = deque([os.fspath(top)]), []

    def fail(error: OSError) -> None:
        raise error

    while starts:  # the top, then each link
        for folder, names, contents in os.walk(starts.popleft(), onerror=fail):
            status = Path(folder).stat()
            below = "" if folder == os.fspath(top) else os.path.relpath(folder, top)
            if (status.st_dev, status.st_ino) in known:
                names.clear()
                repeated.append(below)
                continue
            known.add((status.st_dev, status.st_ino))
            names[:] = sorted(name for name in names if not HIDDEN.search(f"{name}/"))
            paths = [f"{folder}/{name}" for name in names]
            starts.extend(path for path in paths if Path(path).is_symlink())
            folders += [below] if below else []
            prefix = f"{below}/" if below else ""
            files += [prefix + name for name in contents if not name.startswith(".")]
    if repeated:
        report(
            f"note: links to folders that are read already are left out ({len(repeated):,}), such as "
            f"{shown(repeated[0], 200)}"
        )
    files.sort()
    return Container(files, sorted(folders), lambda numbers: ((n, f"{top}/{files[n]}") for n in numbers))


def _zip(path: Path, archive: zipfile.ZipFile) -> Container:
    members: dict[str, zipfile.ZipInfo] = {}
    folders = []
    for member in archive.infolist():
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(_refused(member.filename, "is a link or a device"))
        check_compression(member)
        name = _checked(member.orig_filename, members)
        if member.is_dir():
            folders.append(name)
        else:
            members[name] = member
    if sum(member.file_size for member in members.values()) > MOST_UNPACKED * path.stat().st_size + SLACK:
        raise DataError(TOO_MUCH)
    files = _visible(members)

    def contents(numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        with errors_of(path, DAMAGED, "archive"):
            for number in sorted(numbers, key=lambda number: members[files[number]].header_offset):
                member = members[files[number]]
                _check_size(member.filename, member.file_size)
                with archive.open(member) as file:
                    yield number, b"".join(iter(partial(file.read, PIECE), b""))

    return Container(files, _visible(folders), contents)


def _tar(path: Path) -> Container:
    """A tar archive is read twice: once for its names, which may be in any order, and once for its contents."""
    places: dict[str, int] = {}
    folders = []
    with _tar_members(path) as (_, members):
        for place, member in enumerate(members):
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise DataError(_refused(member.name, "is a link or a device"))
            name = _checked(member.name, places)
            if member.isdir():
                folders.append(name)
            else:
                places[name] = place
    files = _visible(places)

    def contents(numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        wanted = {places[files[number]]: number for number in numbers}
        with errors_of(path, DAMAGED, "archive"), _tar_members(path) as (archive, members):
            for place, member in enumerate(members):
                if place in wanted:
                    _check_size(member.name, member.size)
                    file = archive.extractfile(member)
                    content = file.read() if file else b""
                    if len(content) != member.size:
                        raise EOFError
                    yield wanted[place], content

    return Container(files, _visible(folders), contents)


@contextmanager
def _tar_members(path: Path) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    """An archive, compressed or not, as a stream, and its members in their order."""
    with open_regular(path) as file:
        start = file.read(6)
        file.seek(0)
        most = MOST_UNPACKED * path.stat().st_size + SLACK
        unpack = next((unpack for magic, unpack in COMPRESSIONS.items() if start.startswith(magic)), lambda file: file)
        stream = BoundedStream(unpack(file), most, TOO_MUCH)
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=BoundedMember) as archive:

            def members() -> Iterator[tarfile.TarInfo]:
                for member in archive:
                    yield member
                    vars(archive)["members"].clear()  # it would keep them all

            yield archive, members()
        while stream.read(PIECE):  # to the checksum of a compressed file
            pass


def _checked(name: str, others: Mapping[str, object]) -> str:
    """A member's name as the name of a file below the archive's folder; DataError if it is not one, or not new."""
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or re.match("[A-Za-z]:", name):
        raise DataError(_refused(name, "is a name outside the archive's folder"))
    clean = "/".join(part for part in name.split("/") if part not in ("", "."))
    if clean in others:
        raise DataError(_refused(name, "occurs twice"))
    return clean


def _visible(names: Iterable[str]) -> list[str]:
    """The names without hidden ones and that of the top folder, sorted."""
    return sorted(name for name in names if name and not HIDDEN.search(name))


def _refused(name: str, why: str) -> str:
    return f"the member {shown(repr(name), 300)} {why}; the archive is refused, and nothing of it is used"


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{shown(name)} has {size:,} bytes, expected at most {LARGEST_FILE:,} for one picture")
