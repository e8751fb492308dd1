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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from .bounded import BoundedMember, BoundedStream
from .images import ImageData, LabelledImages

IMAGE_SHAPE = (3, 32, 32)
PIXELS = math.prod(IMAGE_SHAPE)
MOST_MEMBERS = 100  # the published archives have nine

# What pickles of dictionaries, lists, numbers, strings and arrays are made of, in all protocols. The others make sets,
# which are as slow as dictionaries with nested tuples as keys, or objects, or copy the top of the stack.
OPCODES = (
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK
    + pickle.GET + pickle.BINGET + pickle.LONG_BINGET + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE
    + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.BININT2
    + pickle.LONG + pickle.LONG1 + pickle.LONG4 + pickle.FLOAT + pickle.BINFLOAT
    + pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING
    + pickle.BINBYTES + pickle.SHORT_BINBYTES + pickle.BINBYTES8
    + pickle.UNICODE + pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8
    + pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    + pickle.EMPTY_LIST + pickle.LIST + pickle.APPEND + pickle.APPENDS
    + pickle.EMPTY_DICT + pickle.DICT + pickle.SETITEM + pickle.SETITEMS
    + pickle.GLOBAL + pickle.STACK_GLOBAL + pickle.REDUCE + pickle.BUILD
)  # fmt: skip

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


def read_archive(path: Path, contents: Contents) -> ImageData:
    """Read a CIFAR archive, binary or pickled.

    The whole file is read, so that gzip's checksum covers it. Raises DataError for an archive that is missing,
    truncated, damaged or another one.
    """
    count = sum(contents.samples)
    images, labels = np.empty((count, *IMAGE_SHAPE), np.uint8), np.empty(count, np.int64)
    try:
        sha256 = file_sha256(path)
        found = _read_members(path, contents, count * (2 * PIXELS + 512))
        binary = all(name in found for name in contents.binary)
        meta, *batches = contents.binary if binary else contents.pickled
        names = found[meta].split() if binary else _unpickled(found[meta], meta).get(contents.names_key)
        if names != [name.encode() for name in contents.classes]:
            held: Any = type(names).__name__
            if isinstance(names, list) and all(type(name) is bytes for name in names):
                held = [name[:50] for name in names[:10]]  # of bounded length
            raise DataError(f"{meta} has other classes than {contents.title}: {shown(held, 200)}")
        read_batch, start = _binary_batch if binary else _pickled_batch, 0
        for member, samples in zip(batches, contents.samples, strict=True):
            rows = slice(start, start := start + samples)
            # Removed from the dictionary, so that the bytes of each batch are freed as soon as they are copied.
            images[rows], given = read_batch(found.pop(member), member, samples, contents)
            labels[rows] = _checked_labels(given, member, samples, len(contents.classes))
    except DAMAGED as error:
        raise DataError(
            f"archive {shown(path)}: not a complete .tar.gz file ({shown(str(error) or 'ends too early', 200)}): "
            "truncated, damaged or another file; download it again"
        ) from error
    except OSError as error:
        raise DataError(f"archive {shown(path)}: {error.strerror or error}; give another by --archive") from error
    except DataError as error:
        raise DataError(f"archive {shown(path)}: {error}") from error
    end = count - contents.samples[-1]
    train, test = (LabelledImages(images[rows], labels[rows]) for rows in (slice(end), slice(end, None)))
    provenance = Provenance(contents.name, path.name, sha256, published=sha256 in contents.published_sha256)
    return ImageData(contents.name, contents.classes, train, test, provenance)


def _read_members(path: Path, wanted: Contents, most: int) -> dict[str, bytes]:
    """All members of one of the two archives of at most `most` bytes, from one pass to the very end of the file."""
    found: dict[str, bytes] = {}
    seen: list[str] = []
    with gzip.open(path) as unzipped:
        too_much = f"unpacks to far more than {wanted.title} has; not a {wanted.title} archive"
        stream = BoundedStream(unzipped, most + (1 << 20), too_much)
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                seen.append(member.name)
                if len(seen) > MOST_MEMBERS:
                    raise DataError(f"more than {MOST_MEMBERS} files; not a {wanted.title} archive")
                if member.name not in (*wanted.binary, *wanted.pickled):
                    continue
                if not member.isreg() or member.issparse() or member.name in found:
                    raise DataError(f"{member.name} is not a regular file, or occurs twice")
                file = archive.extractfile(member)
                found[member.name] = file.read() if file else b""
                if len(found[member.name]) != member.size:
                    raise EOFError("ends too early")
        while stream.read(1 << 20):
            pass
    archives = wanted.binary, wanted.pickled
    missing = min(([name for name in names if name not in found] for names in archives), key=len)
    if missing:
        held = shown(", ".join(seen), 200) or "nothing"
        raise DataError(f"not a {wanted.title} archive: it holds {held}, and lacks {', '.join(missing)}")
    return found


def _binary_batch(content: bytes, where: str, samples: int, wanted: Contents) -> tuple[NDArray[np.uint8], Any]:
    """Images and labels from records of the label bytes and the pixels in the order channel, row, column."""
    size = wanted.label_bytes + PIXELS
    if len(content) != samples * size:
        raise DataError(f"{where} has {len(content):,} bytes, expected {samples * size:,}")
    records = np.frombuffer(content, np.uint8).reshape(samples, size)
    return records[:, wanted.label_bytes :].reshape(samples, *IMAGE_SHAPE), records[:, wanted.label_byte].tolist()


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
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = shown(f"{type(error).__name__}: {error}", 200)
        raise DataError(f"{where}: not a readable pickle: {reason}") from error
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


def _check_key(stack: list[Any]) -> None:
    _check_keys([stack[-2]])


def _check_keys(stack: list[Any]) -> None:
    if not all(type(key) in (bytes, str) for key in stack[::2]):
        raise DataError("the pickle has keys that are not text, unlike CIFAR: it may be hostile")


def _check_build(stack: list[Any]) -> None:
    if not isinstance(stack[-2], _Recorded):
        raise DataError("the pickle sets attributes of other objects than arrays, unlike CIFAR: it may be hostile")


def _checked(code: int, check: Callable[[list[Any]], None]) -> Callable[[Any], None]:
    """What the unpickler does for an opcode, after a check of its stack above the last mark."""

    def load(unpickler: Any) -> None:
        check(unpickler.stack)
        cast(Any, pickle._Unpickler.dispatch[code])(unpickler)

    return load


CHECKS = {
    pickle.SETITEM: _check_key,
    pickle.SETITEMS: _check_keys,
    pickle.DICT: _check_keys,
    pickle.BUILD: _check_build,
}


class _Unpickler(pickle._Unpickler):
    """Reads dictionaries with text as keys, lists, numbers, strings and arrays, and imports nothing.

    This is the unpickler in Python. That in C reserves 16 bytes for each value that the pickle might keep, and a pickle
    of ten bytes may state 2^32 values. Tuples are no keys: to hash a tuple of tuples takes any time, or ends the
    process.
    """

    dispatch: ClassVar[dict[int, Any]] = {code: pickle._Unpickler.dispatch[code] for code in OPCODES} | {
        code[0]: _checked(code[0], check) for code, check in CHECKS.items()
    }

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct") | ("numpy", "dtype"):
                return _Recorded
            case "numpy", "ndarray":
                return None  # only the first argument of _reconstruct
            case "_codecs", "encode":
                return _encode
        imported = shown(f"{module}.{name}", 200)
        raise DataError(f"the pickle imports {imported}, unlike CIFAR: it may be hostile; no code was run")


def _encode(text: Any, encoding: object = None) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes to an old pickle."""
    if type(text) is not str or type(encoding) not in (str, bytes):  # str() of nested lists takes any time
        raise DataError("the pickle encodes something that is not text, unlike CIFAR: it may be hostile")
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"the pickle encodes text to {shown(repr(encoding), 80)}, unlike CIFAR: it may be hostile")
    return text.encode("latin1")


class _Member(BoundedMember):
    largest_header = 1 << 10  # bytes; the published archives need none
