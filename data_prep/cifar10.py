"""CIFAR-10 (Krizhevsky 2009): its published archives -> arrays.

    https://www.cs.toronto.edu/~kriz/cifar.html

Both layouts are read, cifar-10-binary.tar.gz (records of a label byte and 3072 pixel bytes) and
cifar-10-python.tar.gz (pickles); which one it is, the members tell. Nothing is extracted to the disk, and
an archive is data from strangers: members count by exact name and kind and within a size, pickles are read
without NumPy's unpickling or any import.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import reprlib
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.files import file_sha256, open_regular
from dptrain.system.paths import dangling
from dptrain.system.text import shown

from .pack import ImageData, LabelledImages
from .progress import progress

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BATCH_SAMPLES = 10_000
PUBLISHED_SHA256 = {
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "cifar-10-binary.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce": "cifar-10-python.tar.gz",
}


@dataclass(frozen=True)
class _Layout:
    """One of the two archive layouts: where its members lie, and how one is understood."""

    folder: str
    suffix: str
    meta: str
    batch: Callable[[bytes, str, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    names: Callable[[bytes, str], list[str]]
    exact: bool  # whether a batch has exactly the size of its records

    def members(self) -> list[str]:
        return [f"{self.folder}/{name}{self.suffix}" for name in BATCHES] + [f"{self.folder}/{self.meta}"]

    def size_fits(self, member: str, size: int, samples: int) -> bool:
        if member.endswith(self.meta):
            return 0 <= size <= 1 << 16
        if self.exact:
            return size == samples * (1 + PIXELS)
        # A pickle may spell every pixel in up to two bytes; labels and file names add some.
        return 0 <= size <= samples * (2 * PIXELS + 256) + (1 << 16)


def read_archive(path: Path, *, batch_samples: int = BATCH_SAMPLES) -> ImageData:
    """Read a CIFAR-10 archive of either layout.

    `batch_samples` is the number of images of each of the six batches (10,000; tests make smaller archives).
    The whole file is read, so that gzip's checksum covers it. Raises DataError for an archive that is
    missing, truncated, damaged or another one.
    """
    if why := dangling(path):
        raise DataError(f"archive {shown(path)}: {why}")
    try:
        open_regular(path).close()  # else a named pipe would be waited for
        sha256 = file_sha256(path)
        layout, contents = _read_members(path, batch_samples)
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(
            f"{path}: not a whole .tar.gz file ({error or 'ends too early'}): truncated, damaged or something else; "
            "download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; name it with --archive FILE") from error
    names = layout.names(contents.pop(f"{layout.folder}/{layout.meta}"), f"{path}: {layout.meta}")
    if tuple(names) != CLASSES:
        raise DataError(f"{path}: {layout.meta} names the classes {', '.join(names)}; expected {', '.join(CLASSES)}")
    images = np.empty((6 * batch_samples, *IMAGE_SHAPE), np.uint8)
    labels = np.empty(6 * batch_samples, np.int64)
    for number, name in enumerate(BATCHES):
        rows = slice(number * batch_samples, (number + 1) * batch_samples)
        member = f"{layout.folder}/{name}{layout.suffix}"
        # Taken out of the dictionary, so that each batch's bytes are freed as soon as they are copied.
        images[rows], labels[rows] = layout.batch(contents.pop(member), f"{path}: {member}", batch_samples)
    cut = 5 * batch_samples
    train, test = (LabelledImages(images[part], labels[part]) for part in (slice(0, cut), slice(cut, None)))
    for split, part in (("training", train), ("test", test)):
        _check_balance(path, split, part.labels)
    published = sha256 in PUBLISHED_SHA256
    return ImageData("cifar10", CLASSES, Provenance("cifar10", path.name, sha256, published), train, test)


def describe_archive(path: Path, source: Provenance) -> str:
    """One line: which archive was read and whether it is the published one."""
    if source.published:
        return f"archive {shown(path)}: the published {PUBLISHED_SHA256[source.sha256 or '']} (SHA-256 matches)"
    return f"archive {shown(path)}: NOT a published CIFAR-10 archive (SHA-256 {source.sha256}); figures may differ"


def _read_members(path: Path, batch_samples: int) -> tuple[_Layout, dict[str, bytes]]:
    """The wanted members of the archive, from one pass to the very end of the file."""
    layout: _Layout | None = None
    contents: dict[str, bytes] = {}
    seen: list[str] = []
    with progress("reading", path.stat().st_size, size_in_bytes=True) as advance, path.open("rb") as raw:
        stream = _Bounded(gzip.GzipFile(fileobj=_Counted(raw, advance)), path, 6 * batch_samples * (2 * PIXELS + 512))
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                seen.append(member.name)
                layout = layout or next((known for known in LAYOUTS if member.name in known.members()), None)
                if layout is None or member.name not in layout.members():
                    continue
                _check_member(path, layout, member, batch_samples)
                if member.name in contents:
                    raise DataError(f"{path}: {member.name} is there twice; expected once")
                file = archive.extractfile(member)
                contents[member.name] = file.read() if file else b""
                if len(contents[member.name]) != member.size:
                    raise EOFError("ends too early")
        while stream.read(1 << 20):
            pass
    missing = [name for name in layout.members() if name not in contents] if layout else []
    if layout is None or missing:
        what = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(seen[:4]) or 'nothing'}"
        what += "; that is CIFAR-100" if any("cifar-100" in name for name in seen) else ""
        raise DataError(f"{path}: not a CIFAR-10 archive: it {what}; expected cifar-10-batches-bin/... or -py/...")
    return layout, contents


def _check_member(path: Path, layout: _Layout, member: tarfile.TarInfo, batch_samples: int) -> None:
    """Only plain files of the right size are read: no links, devices or sparse files."""
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: {member.name} is not a regular file")
    if not layout.size_fits(member.name, member.size, batch_samples):
        expected = f"{batch_samples * (1 + PIXELS):,}" if layout.exact else "no more than about twice its pixels"
        raise DataError(f"{path}: {member.name} has {member.size:,} bytes, expected {expected}")


class _Counted(io.RawIOBase):
    """A file that tells how many bytes were read from it."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._advance(len(data))
        return data


class _Bounded(io.RawIOBase):
    """A stream that gives up after `bound` bytes: a small .gz can hold terabytes of zeros."""

    def __init__(self, file: gzip.GzipFile, path: Path, bound: int) -> None:
        self._file, self._path, self._left = file, path, bound + (1 << 20)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path}: unpacks to far more than CIFAR-10 has; not a CIFAR-10 archive")
        return data


def _check_balance(path: Path, split: str, labels: NDArray[np.int64]) -> None:
    """CIFAR-10 has as many images of every class, in both splits."""
    expected = len(labels) // len(CLASSES)
    counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
    wrong = [f"{count:,} of {name}" for name, count in zip(CLASSES, counts, strict=True) if count != expected]
    if wrong:
        found = ", ".join(wrong)
        raise DataError(f"{path}: altered: the {split} split has {found}; expected {expected:,} of every class")


def _binary_batch(content: bytes, where: str, samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of one label byte and the pixels in the order channel, row, column."""
    records = np.frombuffer(content, np.uint8).reshape(samples, 1 + PIXELS)
    return records[:, 1:].reshape(samples, *IMAGE_SHAPE), _checked_labels(records[:, 0].tolist(), where, samples)


def _binary_names(content: bytes, where: str) -> list[str]:
    return content.decode("latin1").split()


def _pickle_batch(content: bytes, where: str, samples: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A pickled dictionary with b"data" uint8 (samples, 3072) and b"labels", a list."""
    batch = _unpickle(content, where)
    data = batch.get(b"data")
    pixels = data.uint8_array((samples, PIXELS)) if isinstance(data, _PickledArray) else None
    if pixels is None:
        raise DataError(f"{where}: data is {_short(data)}, expected a plain uint8 array ({samples}, {PIXELS})")
    return pixels.reshape(samples, *IMAGE_SHAPE), _checked_labels(batch.get(b"labels"), where, samples)


def _pickle_names(content: bytes, where: str) -> list[str]:
    names = _unpickle(content, where).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{where}: label_names is not a list of names")
    return [name.decode("latin1") for name in names]


def _checked_labels(labels: Any, where: str, samples: int) -> NDArray[np.int64]:
    """The labels as int64 (samples,), or DataError naming the first unfit one."""
    if not isinstance(labels, list) or len(labels) != samples:
        found = f"{len(labels)} labels" if isinstance(labels, list) else f"labels of type {type(labels).__name__}"
        raise DataError(f"{where}: {found}, expected a list of {samples:,}")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASSES):
            raise DataError(f"{where}: label {_short(label)} of image {row}, expected 0 to {len(CLASSES) - 1}")
    return np.array(labels, np.int64)


def _short(value: object) -> str:
    """What a value looks like, in a few characters, however much of it there is."""
    shown = f"a number of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 64 else None
    return shown or reprlib.repr(value)


def _unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    """The dictionary of a pickle, its arrays as _PickledArray; DataError for anything else."""
    try:
        value = _Unpickler(io.BytesIO(content), where).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{where}: not a readable pickle: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a pickled {type(value).__name__}, expected a dictionary")
    return value


class _PickledArray:
    """What a pickle says of an array: NumPy's own classes never see it."""

    def __init__(self) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def __repr__(self) -> str:
        shown = self._state[1:4] if isinstance(self._state, tuple) else self._state
        return f"array{shown!r}"[:120]

    def uint8_array(self, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """The array when it is a uint8 array of `shape`, in C or Fortran order, otherwise None."""
        match self._state:
            case (_, tuple(found), _PickledType(kind="u1" | b"u1"), 0 | 1 as fortran, bytes(data)):
                if found == shape and len(data) == math.prod(shape):
                    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        return None


class _PickledType:
    """What a pickle says of a dtype: its kind, such as u1."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields, which uint8 does not have."""

    def __repr__(self) -> str:
        return f"dtype({self.kind!r})"


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays; the names it knows are stand-ins, nothing is imported."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(file, encoding="bytes")
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_arguments: _PickledArray(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_arguments: _PickledArray(),
            ("numpy", "ndarray"): object(),  # only ever the first argument of _reconstruct, which ignores it
            ("numpy", "dtype"): lambda kind, *_flags: _PickledType(kind),
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) not in allowed:
            self._refuse(f"{module}.{name}")
        return allowed[module, name]

    def _encode(self, text: Any, encoding: Any = None) -> bytes:
        """How Python 3 spells bytes in an old pickle."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            self._refuse(f"_codecs.encode to {encoding!r}")
        return text.encode("latin1")

    def _refuse(self, wanted: str) -> NoReturn:
        raise DataError(
            f"{self._where}: the pickle wants to import {wanted}, which CIFAR-10's never do: it may be hostile; "
            "nothing of it was run"
        )


LAYOUTS = (
    _Layout("cifar-10-batches-bin", ".bin", "batches.meta.txt", _binary_batch, _binary_names, True),
    _Layout("cifar-10-batches-py", "", "batches.meta", _pickle_batch, _pickle_names, False),
)
