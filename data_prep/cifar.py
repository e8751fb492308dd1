"""The archives of CIFAR-10 and CIFAR-100 (Krizhevsky 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html

There are two of each: one of binary records, which are label bytes and 3072 pixel bytes, and one of pickles. An archive
may be hostile: nothing is extracted to the disk, only members with the exact names are read, the number of bytes is
limited, and the pickles import nothing.
"""

from __future__ import annotations

import argparse
import gzip
import math
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from .bounded import BoundedMember, BoundedStream
from .cifar_pickle import read_dictionary, stored_images
from .images import ImageData, LabelledImages
from .spool import Spool, SpooledRows

IMAGE_SHAPE = (3, 32, 32)
PIXELS = math.prod(IMAGE_SHAPE)
PIECE = 1 << 16  # bytes that are unpacked at a time
RECORDS = 1000  # binary records in memory
MOST_MEMBERS = 100  # the published archives have nine

# What tarfile and gzip raise for a damaged archive; RecursionError for headers of headers of headers.
DAMAGED = (
    EOFError, ValueError, LookupError, OverflowError, RecursionError, zlib.error, gzip.BadGzipFile, tarfile.TarError
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What the two archives of a data set hold, and which of the labels are read.

    `binary` and `pickled` are names of archive members: first the file of class names, then one file for each batch of
    `samples` images. The last batch is the test split.
    """

    name: str  # of the data set
    title: str
    binary: tuple[str, ...]
    pickled: tuple[str, ...]
    samples: tuple[int, ...]
    published_sha256: tuple[str, ...]
    classes: tuple[str, ...]
    label_bytes: int = 1  # of a binary record
    label_byte: int = 0  # the one that is read
    labels_key: bytes = b"labels"  # of a pickled batch
    names_key: bytes = b"label_names"


class _Batch(NamedTuple):
    """Images that follow one another on the disk, from the number `start` on, by their labels."""

    start: int
    labels: list[int]


def add_archive_argument(parser: argparse.ArgumentParser, stem: str, variable: str, url: str) -> None:
    """The argument --archive, for archives called {stem}-binary.tar.gz and {stem}-python.tar.gz."""
    parser.add_argument(
        "--archive",
        type=path_argument,
        metavar="FILE",
        help=f"{stem}-binary.tar.gz or {stem}-python.tar.gz (default: the file named by the environment variable "
        f"{variable}, or the file in the cache, or a download from {url})",
    )


def is_archive(path: Path, stem: str) -> bool:
    """Whether a file has the name of such an archive."""
    name = path.name.lower()
    return path.is_file() and name.startswith(f"{stem}-") and name.endswith(".tar.gz")


def read_archive(path: Path, contents: Contents, out: Path) -> ImageData:
    """Read a CIFAR archive, binary or pickled. Its images are stored on the disk of the data set `out`.

    The whole file is read, so that gzip's checksum covers it. Raises DataError for an archive that is missing,
    truncated, damaged or another one.
    """
    spool = Spool(out, IMAGE_SHAPE)
    try:
        sha256 = file_sha256(path)
        *train, test = _read_batches(path, contents, spool)
    except DAMAGED as error:
        raise DataError(
            f"archive {shown(path)}: not a complete .tar.gz file ({shown(str(error) or 'ends too early', 200)}): "
            "truncated, damaged or another file; download it again"
        ) from error
    except OSError as error:
        raise DataError(f"archive {shown(path)}: {error.strerror or error}; give another by --archive") from error
    except DataError as error:
        raise DataError(f"archive {shown(path)}: {error}") from error
    splits = _joined(spool, train), _joined(spool, [test])
    provenance = Provenance(contents.name, path.name, sha256, published=sha256 in contents.published_sha256)
    return ImageData(contents.name, contents.classes, *splits, source=provenance)


def _joined(spool: Spool, batches: Sequence[_Batch]) -> LabelledImages:
    rows = [batch.start + np.arange(len(batch.labels)) for batch in batches]
    labels = [np.array(batch.labels, np.int64) for batch in batches]
    return LabelledImages(SpooledRows(spool, np.concatenate(rows)), np.concatenate(labels))


def _read_batches(path: Path, wanted: Contents, spool: Spool) -> list[_Batch]:
    """The batches of one of the two archives in their order, from one pass to the very end of the file."""
    found: dict[str, _Batch | DataError] = {}
    seen: list[str] = []
    with gzip.open(path) as unzipped:
        too_much = f"unpacks to far more than {wanted.title} has; not a {wanted.title} archive"
        stream = BoundedStream(unzipped, _most_bytes(sum(wanted.samples)), too_much)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=PIECE, tarinfo=_Member) as archive:
            for member in archive:
                seen.append(member.name)
                if len(seen) > MOST_MEMBERS:
                    raise DataError(f"more than {MOST_MEMBERS} files; not a {wanted.title} archive")
                if member.name not in (*wanted.binary, *wanted.pickled):
                    continue
                if not member.isreg() or member.issparse() or member.name in found:
                    raise DataError(f"{member.name} is not a regular file, or occurs twice")
                file = archive.extractfile(member)
                assert file is not None
                try:
                    found[member.name] = _read_member(file, member, wanted, spool)
                except DataError as error:  # raised later: a wrong checksum of the file would explain it
                    found[member.name] = DataError(f"{member.name}: {error}")
        while stream.read(PIECE):
            pass
    archives = wanted.binary, wanted.pickled
    missing = min(([name for name in names if name not in found] for names in archives), key=len)
    if missing:
        held = shown(", ".join(seen), 200) or "nothing"
        raise DataError(f"not a {wanted.title} archive: it holds {held}, and lacks {', '.join(missing)}")
    complete = next(names for names in archives if all(name in found for name in names))
    batches = []
    for name in complete:
        if isinstance(part := found[name], DataError):
            raise part
        batches.append(part)
    return batches[1:]


def _read_member(file: IO[bytes], member: tarfile.TarInfo, wanted: Contents, spool: Spool) -> _Batch:
    """Read one of the files of an archive; the one of class names as a batch without images."""
    binary = member.name in wanted.binary
    number = (wanted.binary if binary else wanted.pickled).index(member.name)
    samples = (0, *wanted.samples)[number]
    if member.size > (most := _most_bytes(samples)):
        raise DataError(f"{member.size:,} bytes, expected at most {most:,}")
    start = len(spool)
    labels: Any
    if binary and samples:
        labels = _read_records(file, member.size, samples, wanted, spool)
    elif binary:
        _check_names(file.read().split(), wanted)
        return _Batch(start, [])
    else:
        values = read_dictionary(file, member.size, samples, spool)
        if not samples:
            _check_names(values.get(wanted.names_key), wanted)
            return _Batch(start, [])
        start = stored_images(values.get(b"data"), samples, spool)
        labels = values.get(wanted.labels_key)
    _check_labels(labels, samples, len(wanted.classes))
    return _Batch(start, labels)


def _most_bytes(samples: int) -> int:
    """More than this many samples have in any form: a pickle may store a byte as two."""
    return samples * (2 * PIXELS + 512) + (1 << 20)


def _check_names(names: Any, wanted: Contents) -> None:
    if names != [name.encode() for name in wanted.classes]:
        held: Any = type(names).__name__
        if isinstance(names, list) and all(type(name) is bytes for name in names):
            held = [name[:50] for name in names[:10]]  # of bounded length
        raise DataError(f"has other classes than {wanted.title}: {shown(held, 200)}")


def _read_records(file: IO[bytes], found: int, samples: int, wanted: Contents, spool: Spool) -> list[int]:
    """The labels of records of label bytes and pixels; the images are appended to the spool."""
    size = wanted.label_bytes + PIXELS
    if found != samples * size:
        raise DataError(f"has {found:,} bytes, expected {samples * size:,}")
    labels: list[int] = []
    for start in range(0, samples, RECORDS):
        count = min(RECORDS, samples - start)
        content = file.read(count * size)
        if len(content) != count * size:
            raise EOFError("ends too early")
        records = np.frombuffer(content, np.uint8).reshape(count, size)
        spool.append(records[:, wanted.label_bytes :].reshape(count, *IMAGE_SHAPE))
        labels += records[:, wanted.label_byte].tolist()
    return labels


def _check_labels(labels: Any, samples: int, classes: int) -> None:
    valid = isinstance(labels, list) and all(type(label) is int and 0 <= label < classes for label in labels)
    if not valid or len(labels) != samples:
        raise DataError(f"labels is not a list of {samples:,} whole numbers from 0 to {classes - 1}")


class _Member(BoundedMember):
    largest_header = 1 << 10  # bytes; the published archives need none
