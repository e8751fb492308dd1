"""Arrays in one .npz file, as Keras (mnist.npz) and MedMNIST have them.

    x_train, y_train, x_test, y_test                          or, in this order, the names that the user gives
    train_images, train_labels, test_images, test_labels

Images are uint8 (n, H, W), (n, H, W, C) or (n, C, H, W); labels are integers (n,) or (n, 1). An .npz file is a zip
archive of .npy files (numpy.lib.format). Pickled objects are refused, and images are read in blocks.
"""

from __future__ import annotations

import argparse
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dptrain.data.manifest import LARGEST_IMAGE, Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256, open_regular
from dptrain.system.text import shown

from ..images import LAYOUTS, MOST_CHANNELS, ImageData, ImageSource, LabelledImages, class_names
from ..spool import Spool

KNOWN = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
# What zipfile raises for a damaged archive, one with a password, or one of an unknown method.
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="path", type=path_argument, required=True, metavar="FILE", help="the .npz file")
    parser.add_argument(
        "--arrays",
        metavar="NAME,...",
        help="names of the arrays: training images and labels, test images and labels "
        f"(default: {' or '.join(','.join(names) for names in KNOWN)})",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="order of the axes of images (default: by their shape)")
    parser.add_argument(
        "--classes", metavar="NAME,...", help="names of the classes, in the order of the labels (default: numbers)"
    )


def read_npz(
    path: Path, out: Path, arrays: Sequence[str] = (), layout: str | None = None, classes: str | None = None
) -> ImageData:
    """Both splits, stored on the disk of `out`; DataError for a file that is damaged or has other arrays."""
    try:
        sha256 = file_sha256(path)
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = _names(archive, arrays)
            splits = []
            for images, labels in (names[:2], names[2:]):
                spool = _read_images(archive, images, out, layout)
                splits.append(LabelledImages(spool, _read_labels(archive, labels, len(spool))))
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from error
    except (ValueError, *DAMAGED) as error:
        reason = shown(str(error) or "ends too early", 200)
        raise DataError(f"{shown(path)}: not a readable .npz file, damaged or truncated: {reason}") from error
    train, test = splits
    classes_found = class_names(classes, train.labels, test.labels)
    provenance = Provenance("npz", path.name, sha256, published=False)
    return ImageData(path.stem, classes_found, train, test, provenance, "channels_first")


SOURCE = ImageSource(
    "npz",
    "pack the arrays of an .npz file",
    add_arguments,
    lambda options: read_npz(
        options.path,
        options.folder,
        () if options.arrays is None else options.arrays.split(","),
        options.layout,
        options.classes,
    ),
    path_flag="--from",
    detects=lambda path: path.is_file() and path.suffix == ".npz",
)


def _names(archive: zipfile.ZipFile, given: Sequence[str]) -> Sequence[str]:
    """The names of the four arrays."""
    held = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    if given and len(given) != len(KNOWN[0]):
        raise DataError(f"--arrays has {len(given)} names, expected 4: training images, labels, test images, labels")
    for names in (given,) if given else KNOWN:
        if held.issuperset(names):
            return names
    expected = ", ".join(given) if given else " or ".join(", ".join(names) for names in KNOWN)
    found = shown(", ".join(sorted(held)) or "no arrays", 200)
    raise DataError(f"holds {found}; expected {expected}" + "; name yours by --arrays" * (not given))


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """The values of an array as a stream in row-major order, its shape and its type."""
    if archive.namelist().count(f"{name}.npy") > 1:
        raise DataError(f"array {name} occurs twice")
    with archive.open(f"{name}.npy") as stream:
        try:
            if npy.read_magic(stream) != (1, 0):  # others have headers of up to 4 GiB
                raise ValueError
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        except (OSError, *DAMAGED):
            raise
        except Exception as error:  # a damaged header can raise nearly anything
            raise DataError(f"array {name} is not a .npy file of format 1.0, or is damaged") from error
        if fortran and len(shape) > 1:
            raise DataError(f"array {name} is stored column by column; save numpy.ascontiguousarray({name})")
        yield stream, shape, dtype
        if stream.read(1):  # zipfile checks the sum at the end
            raise DataError(f"array {name} has more bytes than its shape needs")


def _read_images(archive: zipfile.ZipFile, name: str, out: Path, layout: str | None) -> Spool:
    with _opened(archive, name) as (stream, shape, dtype):
        found = f"array {name} is {dtype} of the shape {shown(shape, 100)}"
        if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 1 or math.prod(shape[1:]) > LARGEST_IMAGE:
            expected = "uint8 of (n, H, W), (n, H, W, C) or (n, C, H, W)"
            raise DataError(f"{found}, expected {expected}; convert values of 0 to 1 by (255 * images).round()")
        count, *extents = shape
        if len(extents) == 2:
            extents, layout = [1, *extents], "channels_first"
        if layout is None:
            first, last = extents[0] <= MOST_CHANNELS, extents[-1] <= MOST_CHANNELS
            if first == last:
                raise DataError(f"{found}; state the order of its axes by --layout {' or --layout '.join(LAYOUTS)}")
            layout = "channels_first" if first else "channels_last"
        channels_last = layout == "channels_last"
        channels, height, width = (extents[-1], *extents[:-1]) if channels_last else extents
        spool = Spool(out, (channels, height, width))
        if (read := spool.read_from(stream, count, channels_last=channels_last)) < count:
            raise DataError(f"array {name} ends after {read:,} of {count:,} images")
    return spool


def _read_labels(archive: zipfile.ZipFile, name: str, images: int) -> NDArray[Any]:
    with _opened(archive, name) as (stream, shape, dtype):
        if dtype.kind not in "iu" or shape not in ((images,), (images, 1)):
            raise DataError(
                f"array {name} is {dtype} of the shape {shown(shape, 100)}, expected integers of ({images},) or "
                f"({images}, 1), one for each image; convert one-hot rows by labels.argmax(axis=1)"
            )
        content = stream.read(images * dtype.itemsize)
        if len(content) != images * dtype.itemsize:
            raise DataError(f"array {name} ends after {len(content) // dtype.itemsize:,} of {images:,} labels")
    return np.frombuffer(content, dtype)
