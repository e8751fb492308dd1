"""Images and labels in named arrays, as .npz, .npy and HDF5 files have them: which are read, and the splits they give.

Images are uint8 (n, H, W), (n, H, W, C) or (n, C, H, W); labels are integers (n,) or (n, 1). An array is read as a
stream of its values, in blocks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import LARGEST_IMAGE, REQUIRED, SPLITS, Provenance
from dptrain.errors import DataError, UsageError
from dptrain.system.text import counted, shown

from . import report
from .images import (
    LAYOUTS,
    MOST_CHANNELS,
    ImageData,
    LabelledImages,
    add_class_names,
    class_names,
    images_advice,
    labels_error,
)
from .splits import add_test_fraction, check_no_split_is_there, drawn_test_split
from .spool import Spool, SpooledRows

# Names of images and labels for training, test and validation, each as far as there are any.
KNOWN = (
    ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"),  # Keras
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),  # MedMNIST
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
)


class ArrayStream(NamedTuple):
    """The values of an array in row-major order, its shape and its type."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Opener = Callable[[str], AbstractContextManager[ArrayStream]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every source of named arrays."""
    listed = "; ".join(",".join(names) for names in KNOWN)
    parser.add_argument(
        "--arrays",
        metavar="NAME,...",
        help="names of the arrays of images and of labels: for training, then for test, then for validation, as far as "
        f"there are any (default: the first of these: {listed})",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="order of the axes of images (default: by their shape)")
    add_class_names(parser)
    add_test_fraction(parser)


def read_arrays(
    name: str, source: Provenance, held: Collection[str], opened: Opener, options: argparse.Namespace
) -> ImageData:
    """Read the data set in a file whose arrays have the names `held`; `opened(name)` opens one.

    Its images are stored on the disk of the new data set. DataError for arrays that are missing or damaged, or are not
    images and labels.
    """
    names = _names(held, options.arrays)
    if others := sorted({*held} - {*names}):
        report(f"note: arrays that are not read ({len(others):,}): {shown(', '.join(others), 200)}")
    check_no_split_is_there(SPLITS[: len(names) // 2], options)
    splits: dict[str, Any] = {}
    for split, images, labels in zip(SPLITS, names[::2], names[1::2], strict=False):
        spool = _read_images(images, opened, options)
        splits[split] = LabelledImages(spool, _read_labels(labels, opened, len(spool)))
    if "test" not in splits:
        splits |= _split_test(splits["train"], options)
    classes = class_names(options.classes, *(part.labels for part in splits.values()))
    return ImageData(name, classes, **splits, source=source, layout="channels_first")


def _names(held: Collection[str], given: str | None) -> Sequence[str]:
    """The names of the arrays that are read."""
    names = () if given is None else tuple(given.split(","))
    if given is not None and len(names) not in (2, 4, 6):
        raise UsageError(
            f"--arrays has {counted(len(names), 'name')}, expected 2, 4 or 6: images, labels of each of "
            f"{', '.join(SPLITS)}"
        )
    for known in (names,) if names else KNOWN:
        if set(held).issuperset(known):
            return known
    expected = ", ".join(names) if names else " or ".join(", ".join(known) for known in KNOWN)
    found = shown(", ".join(sorted(held)) or "no arrays", 200)
    raise DataError(f"holds {found}; expected {expected}" + "; name yours by --arrays" * (not names))


def _split_test(part: LabelledImages, options: argparse.Namespace) -> dict[str, LabelledImages]:
    """Training and test split of the samples of one."""
    labels = part.labels.astype(np.int64)
    apart = drawn_test_split(labels, options)
    report(f"note: {apart.sum():,} of {apart.size:,} images, drawn from each class, are the test split")
    rows = (np.flatnonzero(one) for one in (~apart, apart))
    return {
        split: LabelledImages(SpooledRows(part.images, one), labels[one])
        for split, one in zip(REQUIRED, rows, strict=True)
    }


def _read_images(name: str, opened: Opener, options: argparse.Namespace) -> Spool:
    with opened(name) as (stream, shape, dtype):
        found = f"array {name} is {dtype} of the shape {shown(shape, 100)}"
        if 0 in shape:
            raise DataError(f"{found}: it holds no images")
        if dtype != np.uint8 or len(shape) not in (3, 4) or math.prod(shape[1:]) > LARGEST_IMAGE:
            expected = "uint8 of (n, H, W), (n, H, W, C) or (n, C, H, W)"
            raise DataError(f"{found}, expected {expected}{images_advice(dtype, shape)}")
        count, *extents = shape
        layout = options.layout
        if len(extents) == 2:
            extents, layout = [1, *extents], "channels_first"
        if layout is None:
            first, last = extents[0] <= MOST_CHANNELS, extents[-1] <= MOST_CHANNELS
            if first == last:
                raise DataError(f"{found}; state the order of its axes by --layout {' or --layout '.join(LAYOUTS)}")
            layout = "channels_first" if first else "channels_last"
        channels_last = layout == "channels_last"
        channels, height, width = (extents[-1], *extents[:-1]) if channels_last else extents
        spool = Spool(options.folder, (channels, height, width))
        if (read := spool.read_from(stream, count, channels_last=channels_last)) < count:
            raise DataError(f"array {name} ends after {read:,} of {count:,} images")
    return spool


def _read_labels(name: str, opened: Opener, images: int) -> NDArray[Any]:
    with opened(name) as (stream, shape, dtype):
        if dtype.kind not in "iu" or shape not in ((images,), (images, 1)):
            raise labels_error(f"array {name} is", dtype, shape, images)
        content = stream.read(images * dtype.itemsize)
        if len(content) != images * dtype.itemsize:
            raise DataError(f"array {name} ends after {len(content) // dtype.itemsize:,} of {images:,} labels")
    return np.frombuffer(content, dtype)
