"""The archives of CIFAR-10 and CIFAR-100 (Krizhevsky 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html

There are two of each: one of binary records, which are label bytes and 3072 pixel bytes, and one of pickles. An archive
may be hostile: nothing is extracted to the disk, only members with the exact names are read, the number of bytes is
limited, and the pickles import nothing.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from .bounded import BoundedStream
from .images import ImageData, LabelledImages
from .spool import Spool, SpooledRows

IMAGE_SHAPE = (3, 32, 32)
PIXELS = math.prod(IMAGE_SHAPE)
PIECE = 1 << 16  # bytes that are unpacked at a time
RECORDS = 1000  # binary records in memory


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
    return path.is_file() and path.name.startswith(f"{stem}-") and path.name.endswith(".tar.gz")


def read_archive(path: Path, contents: Contents, out: Path) -> ImageData:
    """Read a CIFAR archive, binary or pickled. Its images are stored on the disk of the data set `out`.

    The whole file is read, so that gzip's checksum covers it. Raises DataError for an archive that is missing,
    truncated, damaged or another one.
    """
    spool = Spool(out, IMAGE_SHAPE)
    try:
        sha256 = file_sha256(path)
        *train, test = _read_batches(path, contents, spool)
    except (EOFError, ValueError, LookupError, OverflowError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(
            f"archive {shown(path)}: not a complete .tar.gz file ({error or 'ends too early'}): truncated, damaged or "
            "another file; download it again"
        ) from error
    except OSError as error:
        raise DataError(f"archive {shown(path)}: {error.strerror or error}; give another by --archive") from error
    except DataError as error:
        raise DataError(f"archive {shown(path)}: {error}") from error
    splits = (_joined(spool, batches) for batches in (train, [test]))
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
        with tarfile.open(fileobj=stream, mode="r|", bufsize=PIECE) as archive:
            for member in archive:
                seen.append(member.name)
                if member.name not in (*wanted.binary, *wanted.pickled):
                    continue
                if not member.isreg() or member.issparse() or member.name in found:
                    raise DataError(f"{member.name} is not a regular file, or occurs twice")
                file = archive.extractfile(member)
                assert file is not None
                try:
                    found[member.name] = _read_member(file, member, wanted, spool)
                except DataError as error:  # a wrong checksum at the end of the file would explain it
                    found[member.name] = error
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
    """Read one of the files of an archive; a batch without images stands for the names of the classes."""
    binary = member.name in wanted.binary
    number = (wanted.binary if binary else wanted.pickled).index(member.name)
    samples = (0, *wanted.samples)[number]
    if member.size > (most := _most_bytes(samples)):
        raise DataError(f"{member.name} has {member.size:,} bytes, expected at most {most:,}")
    start = len(spool)
    if samples and binary:
        labels: Any = _read_records(file, member, samples, wanted, spool)
    else:
        content = file.read()
        if len(content) != member.size:
            raise EOFError("ends too early")
        if not samples:
            names = content.split() if binary else _unpickled(content, member.name).get(wanted.names_key)
            _check_names(names, member.name, wanted)
            return _Batch(start, [])
        images, labels = _pickled_batch(content, member.name, samples, wanted)
        spool.append(images)
    return _Batch(start, _checked_labels(labels, member.name, samples, len(wanted.classes)))


def _most_bytes(samples: int) -> int:
    """More than this many samples have in any form: a pickle may store a byte as two."""
    return samples * (2 * PIXELS + 512) + (1 << 20)


def _check_names(names: Any, where: str, wanted: Contents) -> None:
    if names != [name.encode() for name in wanted.classes]:
        held: Any = type(names).__name__
        if isinstance(names, list) and all(type(name) is bytes for name in names):
            held = [name[:50] for name in names[:10]]  # of bounded length
        raise DataError(f"{where} has other classes than {wanted.title}: {shown(held, 200)}")


def _read_records(
    file: IO[bytes], member: tarfile.TarInfo, samples: int, wanted: Contents, spool: Spool
) -> list[int]:
    """Append images from records of the label bytes and the pixels in the order channel, row, column; the labels."""
    size = wanted.label_bytes + PIXELS
    if member.size != samples * size:
        raise DataError(f"{member.name} has {member.size:,} bytes, expected {samples * size:,}")
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


def _pickled_batch(content: bytes, where: str, samples: int, wanted: Contents) -> tuple[NDArray[np.uint8], Any]:
    """The same from a pickled dictionary; its labels may be anything."""
    batch = _unpickled(content, where)
    array = batch.get(b"data")
    # What ndarray.__setstate__ gets: version, shape, dtype, whether in Fortran order, the bytes.
    match array.state if isinstance(array, _Recorded) else None:
        case (_, tuple(shape), _Recorded(arguments=("u1" | b"u1", *_)), 0 | 1 as fortran, bytes(pixels)) if (
            shape == (samples, PIXELS) and len(pixels) == samples * PIXELS
        ):
            images = np.frombuffer(pixels, np.uint8).reshape((samples, PIXELS), order="F" if fortran else "C")
            return images.reshape(samples, *IMAGE_SHAPE), batch.get(wanted.labels_key)
    raise DataError(f"{where}: data is not an uint8 array ({samples}, {PIXELS})")


def _checked_labels(labels: Any, where: str, samples: int, classes: int) -> list[int]:
    valid = isinstance(labels, list) and all(type(label) is int and 0 <= label < classes for label in labels)
    if not valid or len(labels) != samples:
        raise DataError(f"{where}: labels is not a list of {samples:,} whole numbers from 0 to {classes - 1}")
    return list(labels)


def _unpickled(content: bytes, where: str) -> dict[bytes, Any]:
    """The dictionary of a pickle; DataError for anything else."""
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{where}: not a readable pickle: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a pickled {type(value).__name__}, expected a dictionary")
    return value


class _Recorded:
    """An array or dtype in a pickle, as the arguments and the state from which NumPy would make it.

    NumPy itself must not read them: a forged state of a dtype makes it use any memory as an object.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct") | ("numpy", "dtype"):
                return _Recorded
            case "numpy", "ndarray":
                return None  # only the first argument of _reconstruct
            case "_codecs", "encode":
                return _encode
        raise DataError(f"the pickle imports {module}.{name}, unlike CIFAR: it may be hostile; no code was run")


def _encode(text: Any, encoding: object = None) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes to an old pickle."""
    if type(text) is not str:  # str() of nested lists takes any time
        raise DataError("the pickle encodes something that is not text, unlike CIFAR: it may be hostile")
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"the pickle encodes text to {encoding!r}, unlike CIFAR: it may be hostile")
    return text.encode("latin1")
