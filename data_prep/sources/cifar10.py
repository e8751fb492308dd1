"""CIFAR-10 (Krizhevsky 2009) from its published archives.

    https://www.cs.toronto.edu/~kriz/cifar.html

Both archives are read: cifar-10-binary.tar.gz (records of a label byte and 3072 pixel bytes) and
cifar-10-python.tar.gz (pickles). An archive may be hostile: nothing is extracted to the disk, only members with the
exact names are read, the number of bytes is limited, and the pickles import nothing.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import pickle
import reprlib
import tarfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from ..download import find_archive
from ..images import ImageData, ImageSource, LabelledImages
from ..progress import Bar

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
PUBLISHED_SHA256 = (SHA256, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce")  # binary, python
VARIABLE = "DPTRAIN_CIFAR10_ARCHIVE"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (3, 32, 32)
PIXELS = math.prod(IMAGE_SHAPE)
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BATCH_SAMPLES = 10_000

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--archive",
        type=path_argument,
        metavar="FILE",
        help="cifar-10-binary.tar.gz or cifar-10-python.tar.gz (default: the file named by the environment variable "
        f"{VARIABLE}, or the file in the cache, or a download from {URL})",
    )
    parser.add_argument(
        "--optional", action="store_true", help="if the server cannot be reached, print a note instead of an error"
    )


def read(options: argparse.Namespace) -> ImageData:
    return read_archive(find_archive(options.archive, VARIABLE, URL, SHA256))


SOURCE = ImageSource("cifar10", "pack CIFAR-10 from a published archive", add_arguments, read)


@dataclass(frozen=True)
class _Layout:
    """One of the two archive layouts: the names of its members, and how they are read."""

    folder: str
    suffix: str
    meta: str
    batch: Callable[[bytes, str, int], Batch]
    names: Callable[[bytes, str], list[str]]

    def members(self) -> list[str]:
        return [f"{self.folder}/{name}{self.suffix}" for name in BATCHES] + [f"{self.folder}/{self.meta}"]


def read_archive(path: Path, *, batch_samples: int = BATCH_SAMPLES) -> ImageData:
    """Read a CIFAR-10 archive of either layout.

    `batch_samples` is the number of images of each of the six batches (10,000; tests write smaller archives). The whole
    file is read, so that gzip's checksum covers it. Raises DataError for an archive that is missing, truncated, damaged
    or another one.
    """
    try:
        sha256 = file_sha256(path)
        layout, contents = _read_members(path, batch_samples)
        names = layout.names(contents.pop(f"{layout.folder}/{layout.meta}"), layout.meta)
        if tuple(names) != CLASSES:
            raise DataError(f"{layout.meta} has the classes {', '.join(names)}; expected {', '.join(CLASSES)}")
        images = np.empty((6 * batch_samples, *IMAGE_SHAPE), np.uint8)
        labels = np.empty(6 * batch_samples, np.int64)
        for number, name in enumerate(BATCHES):
            rows = slice(number * batch_samples, (number + 1) * batch_samples)
            member = f"{layout.folder}/{name}{layout.suffix}"
            # Removed from the dictionary, so that the bytes of each batch are freed as soon as they are copied.
            images[rows], labels[rows] = layout.batch(contents.pop(member), member, batch_samples)
        cut = 5 * batch_samples
        train, test = (LabelledImages(images[part], labels[part]) for part in (slice(0, cut), slice(cut, None)))
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(
            f"archive {shown(path)}: not a complete .tar.gz file ({error or 'ends too early'}): truncated, damaged or "
            "another file; download it again"
        ) from error
    except OSError as error:
        raise DataError(f"archive {shown(path)}: {error.strerror or error}; give another by --archive") from error
    except DataError as error:
        raise DataError(f"archive {shown(path)}: {error}") from error
    provenance = Provenance("cifar10", path.name, sha256, published=sha256 in PUBLISHED_SHA256)
    return ImageData("cifar10", CLASSES, train, test, provenance)


def _read_members(path: Path, batch_samples: int) -> tuple[_Layout, dict[str, bytes]]:
    """The wanted members of the archive, from one pass to the very end of the file."""
    layout: _Layout | None = None
    contents: dict[str, bytes] = {}
    seen: list[str] = []
    with gzip.open(path) as unzipped, closing(Bar("reading", 6 * batch_samples * (1 + PIXELS))) as bar:
        stream = _Bounded(unzipped, bar, 6 * batch_samples * (2 * PIXELS + 512))
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                seen.append(member.name)
                layout = layout or next((known for known in LAYOUTS if member.name in known.members()), None)
                if layout is None or member.name not in layout.members():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{member.name} is not a regular file")
                if member.name in contents:
                    raise DataError(f"{member.name} occurs twice")
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
        raise DataError(f"not a CIFAR-10 archive: it {what}; expected cifar-10-batches-bin/... or -py/...")
    return layout, contents


class _Bounded(io.RawIOBase):
    """A stream that advances a bar and fails after `bound` bytes, because a small .gz may unpack to terabytes."""

    def __init__(self, file: gzip.GzipFile, bar: Bar, bound: int) -> None:
        self._file, self._bar, self._left = file, bar, bound + (1 << 20)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._bar.update(len(data))
        self._left -= len(data)
        if self._left < 0:
            raise DataError("unpacks to far more than CIFAR-10 has; not a CIFAR-10 archive")
        return data


def _binary_batch(content: bytes, where: str, samples: int) -> Batch:
    """Records of one label byte and the pixels in the order channel, row, column."""
    if len(content) != samples * (1 + PIXELS):
        raise DataError(f"{where} has {len(content):,} bytes, expected {samples * (1 + PIXELS):,}")
    records = np.frombuffer(content, np.uint8).reshape(samples, 1 + PIXELS)
    return records[:, 1:].reshape(samples, *IMAGE_SHAPE), _checked_labels(records[:, 0].tolist(), where, samples)


def _binary_names(content: bytes, where: str) -> list[str]:
    return content.decode("latin1").split()


def _pickle_batch(content: bytes, where: str, samples: int) -> Batch:
    """A pickled dictionary with b"data" uint8 (samples, 3072) and b"labels", a list."""
    batch = _unpickle(content, where)
    data = batch.get(b"data")
    # What ndarray.__setstate__ gets: version, shape, dtype, whether in Fortran order, the bytes.
    match data.state if isinstance(data, _Recorded) else None:
        case (_, tuple(shape), _Recorded(arguments=("u1" | b"u1", *_)), 0 | 1 as fortran, bytes(pixels)) if (
            shape == (samples, PIXELS) and len(pixels) == samples * PIXELS
        ):
            images = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
            return images.reshape(samples, *IMAGE_SHAPE), _checked_labels(batch.get(b"labels"), where, samples)
    raise DataError(f"{where}: data is {_short(data)}, expected a plain uint8 array ({samples}, {PIXELS})")


def _pickle_names(content: bytes, where: str) -> list[str]:
    names = _unpickle(content, where).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{where}: label_names is not a list of names")
    return [name.decode("latin1") for name in names]


def _checked_labels(labels: Any, where: str, samples: int) -> NDArray[np.int64]:
    """The labels as int64 (samples,), or a DataError with the first bad one."""
    if not isinstance(labels, list) or len(labels) != samples:
        found = f"{len(labels)} labels" if isinstance(labels, list) else f"labels of type {type(labels).__name__}"
        raise DataError(f"{where}: {found}, expected a list of {samples:,}")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASSES):
            raise DataError(f"{where}: label {_short(label)} of image {row}, expected 0 to {len(CLASSES) - 1}")
    return np.array(labels, np.int64)


def _short(value: object) -> str:
    """A value in a few characters, however large it is."""
    large = isinstance(value, int) and value.bit_length() > 64
    return f"a number of {value.bit_length()} bits" if large else reprlib.repr(value)  # type: ignore[attr-defined]


def _unpickle(content: bytes, where: str) -> dict[bytes, Any]:
    """The dictionary of a pickle, its arrays as _Recorded; DataError for anything else."""
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
    """An array or dtype in a pickle, as the arguments and the state from which NumPy would make it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"array{self.state[1:4] if isinstance(self.state, tuple) else self.arguments!r}"[:120]


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "dtype"),
        ):
            return _Recorded
        if (module, name) == ("numpy", "ndarray"):
            return None  # only the first argument of _reconstruct
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise _hostile(f"{module}.{name}")


def _encode(text: Any, encoding: Any = None) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes to an old pickle."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _hostile(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _hostile(wanted: str) -> DataError:
    return DataError(
        f"the pickle imports {wanted}, which the pickles of CIFAR-10 do not: it may be hostile; no code was run"
    )


LAYOUTS = (
    _Layout("cifar-10-batches-bin", ".bin", "batches.meta.txt", _binary_batch, _binary_names),
    _Layout("cifar-10-batches-py", "", "batches.meta", _pickle_batch, _pickle_names),
)
