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
import re
import tarfile
import zlib
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

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
PUBLISHED_SHA256 = (SHA256, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce")  # binary, python
VARIABLE = "DPTRAIN_CIFAR10_ARCHIVE"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SHAPE = (3, 32, 32)
PIXELS = math.prod(IMAGE_SHAPE)
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BATCH_SAMPLES = 10_000
# The members of the two archives: the class names, then the batches.
BINARY = [f"cifar-10-batches-bin/{name}" for name in ("batches.meta.txt", *(f"{batch}.bin" for batch in BATCHES))]
PICKLED = [f"cifar-10-batches-py/{name}" for name in ("batches.meta", *BATCHES)]


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


SOURCE = ImageSource(
    "cifar10",
    "pack CIFAR-10 from a published archive",
    add_arguments,
    lambda options: read_archive(find_archive(options.archive, VARIABLE, URL, SHA256)),
    path_flag="--archive",
    detects=lambda path: path.is_file() and re.fullmatch(r"cifar-10-.*\.tar\.gz", path.name) is not None,
)


def read_archive(path: Path, *, batch_samples: int = BATCH_SAMPLES) -> ImageData:
    """Read a CIFAR-10 archive, binary or pickled.

    `batch_samples` is the number of images of each of the six batches (10,000; tests write smaller archives). The whole
    file is read, so that gzip's checksum covers it. Raises DataError for an archive that is missing, truncated, damaged
    or another one.
    """
    images = np.empty((6, batch_samples, *IMAGE_SHAPE), np.uint8)
    labels = np.empty((6, batch_samples), np.int64)
    try:
        sha256 = file_sha256(path)
        contents = _read_members(path, 6 * batch_samples * (2 * PIXELS + 512))
        binary = all(name in contents for name in BINARY)
        meta, *batches = BINARY if binary else PICKLED
        read_batch = _binary_batch if binary else _pickled_batch
        names = contents[meta].split() if binary else _unpickled(contents[meta], meta).get(b"label_names")
        if names != [name.encode() for name in CLASSES]:
            raise DataError(f"{meta} has other classes than CIFAR-10: {shown(names, 200)}")
        for number, member in enumerate(batches):
            # Removed from the dictionary, so that the bytes of each batch are freed as soon as they are copied.
            images[number], found = read_batch(contents.pop(member), member, batch_samples)
            labels[number] = _checked_labels(found, member, batch_samples)
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise DataError(
            f"archive {shown(path)}: not a complete .tar.gz file ({error or 'ends too early'}): truncated, damaged or "
            "another file; download it again"
        ) from error
    except OSError as error:
        raise DataError(f"archive {shown(path)}: {error.strerror or error}; give another by --archive") from error
    except DataError as error:
        raise DataError(f"archive {shown(path)}: {error}") from error
    train, test = (
        LabelledImages(images[part].reshape(-1, *IMAGE_SHAPE), labels[part].reshape(-1))
        for part in (slice(0, 5), slice(5, 6))
    )
    provenance = Provenance("cifar10", path.name, sha256, published=sha256 in PUBLISHED_SHA256)
    return ImageData("cifar10", CLASSES, train, test, provenance)


def _read_members(path: Path, most: int) -> dict[str, bytes]:
    """All members of one of the two archives of at most `most` bytes, from one pass to the very end of the file."""
    contents: dict[str, bytes] = {}
    seen: list[str] = []
    with gzip.open(path) as unzipped:
        stream = _Bounded(unzipped, most)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                seen.append(member.name)
                if member.name not in (*BINARY, *PICKLED):
                    continue
                if not member.isreg() or member.issparse() or member.name in contents:
                    raise DataError(f"{member.name} is not a regular file, or occurs twice")
                file = archive.extractfile(member)
                contents[member.name] = file.read() if file else b""
                if len(contents[member.name]) != member.size:
                    raise EOFError("ends too early")
        while stream.read(1 << 20):
            pass
    missing = min(([name for name in names if name not in contents] for names in (BINARY, PICKLED)), key=len)
    if missing:
        held = shown(", ".join(seen), 200) or "nothing"
        raise DataError(f"not a CIFAR-10 archive: it holds {held}, and lacks {', '.join(missing)}")
    return contents


class _Bounded(io.RawIOBase):
    """A stream that fails after `most` bytes and 1 MiB, because a small .gz may unpack to terabytes."""

    def __init__(self, file: gzip.GzipFile, most: int) -> None:
        self._file, self._left = file, most + (1 << 20)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError("unpacks to far more than CIFAR-10 has; not a CIFAR-10 archive")
        return data


def _binary_batch(content: bytes, where: str, samples: int) -> tuple[NDArray[np.uint8], Any]:
    """Images and labels from records of one label byte and the pixels in the order channel, row, column."""
    if len(content) != samples * (1 + PIXELS):
        raise DataError(f"{where} has {len(content):,} bytes, expected {samples * (1 + PIXELS):,}")
    records = np.frombuffer(content, np.uint8).reshape(samples, 1 + PIXELS)
    return records[:, 1:].reshape(samples, *IMAGE_SHAPE), records[:, 0].tolist()


def _pickled_batch(content: bytes, where: str, samples: int) -> tuple[NDArray[np.uint8], Any]:
    """The same from a pickled dictionary; its b"labels" may be anything."""
    batch = _unpickled(content, where)
    array = batch.get(b"data")
    # What ndarray.__setstate__ gets: version, shape, dtype, whether in Fortran order, the bytes.
    match array.state if isinstance(array, _Recorded) else None:
        case (_, tuple(shape), _Recorded(arguments=("u1" | b"u1", *_)), 0 | 1 as fortran, bytes(pixels)) if (
            shape == (samples, PIXELS) and len(pixels) == samples * PIXELS
        ):
            images = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
            return images.reshape(samples, *IMAGE_SHAPE), batch.get(b"labels")
    raise DataError(f"{where}: data is not an uint8 array ({samples}, {PIXELS})")


def _checked_labels(labels: Any, where: str, samples: int) -> list[int]:
    valid = isinstance(labels, list) and all(type(label) is int and 0 <= label < len(CLASSES) for label in labels)
    if not valid or len(labels) != samples:
        raise DataError(f"{where}: labels is not a list of {samples:,} whole numbers from 0 to 9")
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
        raise DataError(f"the pickle imports {module}.{name}, unlike CIFAR-10: it may be hostile; no code was run")


def _encode(text: Any, encoding: object = None) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes to an old pickle."""
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"the pickle encodes text to {encoding!r}, unlike CIFAR-10: it may be hostile")
    return str(text).encode("latin1")
