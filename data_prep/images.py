"""Sources of images with labels, and the checks and conversions before anything is written.

Shapes: n samples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import LARGEST_IMAGE, LONGEST_NAME, SPLITS, Preparation, Provenance, check_names
from dptrain.errors import DataError
from dptrain.system.text import counted, shown

from .spool import Spool, SpooledRows

MOST_CHANNELS = 4  # in images whose layout is recognised: grey, grey and alpha, RGB, RGBA
MOST_CLASSES = 1 << 16  # with numbers as names
FROM_1 = "; are the labels numbered from 1? then subtract 1"
LAYOUTS = ("channels_first", "channels_last")


class BrokenPicturesError(DataError):
    """Pictures that cannot be decoded; `broken` has the reason for each name."""

    def __init__(self, text: str, broken: Mapping[str, str]) -> None:
        super().__init__(text)
        self.broken = dict(broken)


@dataclass(frozen=True)
class LabelledImages:
    """One split of a source: images uint8 (n, C, H, W) or (n, H, W, C), labels of any integer type (n,).

    The images are an array, or a Spool or rows of one, (n, C, H, W), if they should not be in memory at once.
    `names` are those of files, for messages.
    """

    images: Any
    labels: NDArray[Any]
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class ImageData:
    """The result of a source: its splits in the order of the source, and their description.

    `source` states where the images come from (default: only the data set's name). `layout` states the order of the
    axes. It may be omitted if the shape is (n, C, H, W) with C of at most 4, and H and W above 4. `preparation` states
    how image files were decoded, and `broken` which are left out, with the reasons.
    """

    name: str
    classes: Sequence[str]
    train: LabelledImages
    test: LabelledImages
    source: Provenance | None = None
    layout: Literal["channels_first", "channels_last"] | None = None
    validation: LabelledImages | None = None
    preparation: Preparation | None = None
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, LabelledImages]:
        """The splits that there are, by name, in the order of SPLITS."""
        return {split: part for split in SPLITS if (part := getattr(self, split)) is not None}


@dataclass(frozen=True)
class ImageSource:
    """A command of data_prep: its name, its help, its arguments, and how to read its images.

    `read` gets the parsed arguments: those of `add_arguments`, those of packing, such as `seed`, and `folder`, the data
    set's folder. It raises DataError, or UsageError for arguments that do not fit. If the images are in a file or
    folder that the user names by `path_flag`, `detects` states whether a path is one for this source. It is quick, and
    may raise OSError. `example` has the arguments of an example for the help.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    read: Callable[[argparse.Namespace], ImageData]
    path_flag: str = ""
    detects: Callable[[Path], bool] = lambda path: False
    example: str = ""


def not_recorded(argument: argparse.Action) -> None:
    """Mark an argument that does not change the packed images: the command in the manifest leaves it out."""
    vars(argument)["recorded"] = False


def set_name(path: Path) -> str:
    """The name of a data set from that of its file, without the suffix, or folder: text that can be printed."""
    path = path.resolve()
    return shown(path.name if path.is_dir() else path.stem, LONGEST_NAME).strip() or "images"


def add_class_names(parser: argparse.ArgumentParser) -> None:
    """The argument of a source whose classes are numbers, for `class_names`."""
    parser.add_argument(
        "--classes", metavar="NAME,...", help="names of the classes, in the order of the labels (default: numbers)"
    )


def class_names(given: str | None, *labels: NDArray[Any]) -> tuple[str, ...]:
    """The names that a user gives, separated by commas, or numbers; DataError if there are too few for the labels."""
    most = max(int(one.max()) for one in labels if one.size)  # an empty split is refused later
    if most >= MOST_CLASSES:
        raise DataError(f"labels up to {most}, expected at most {MOST_CLASSES - 1:,}")
    names = tuple(given.split(",")) if given is not None else tuple(map(str, range(most + 1)))
    if len(names) <= most:
        from_1 = FROM_1 * (min(int(one.min()) for one in labels if one.size) == 1)
        raise DataError(f"--classes has {counted(len(names), 'name')}, but there are labels up to {most}{from_1}")
    return names


def checked(data: ImageData) -> ImageData:
    """The same data with images (n, C, H, W), labels int64 and classes a tuple; DataError for what cannot be packed."""
    check_names(data.name, data.classes)
    if data.layout not in (None, *LAYOUTS):
        raise DataError(f"layout is {shown(repr(data.layout), 60)}, expected {' or '.join(map(repr, LAYOUTS))}")
    splits: dict[str, Any] = {split: _checked_split(split, part, data) for split, part in data.splits.items()}
    shape = splits["train"].images.shape[1:]
    if math.prod(shape) > LARGEST_IMAGE:
        raise DataError(f"images (C, H, W) are {shape}, expected at most {LARGEST_IMAGE:,} bytes each")
    for split, part in splits.items():
        if part.images.shape[1:] != shape:
            found = part.images.shape[1:]
            raise DataError(f"train images (C, H, W) are {shape}, {split} images {found}; expected the same")
    return replace(data, classes=tuple(data.classes), **splits, layout="channels_first")


def images_advice(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """What to do with an array of this type and shape that should be images."""
    if len(shape) < 2:
        return "; images come first, then their labels"
    if dtype.kind == "O":
        return "; make one array of images of one size, by np.stack"
    if dtype.kind in "fb":
        return "; convert values of 0 to 1 by (255 * images).round().astype(np.uint8)"
    if dtype != np.uint8:
        return "; convert values of 0 to 255 by images.astype(np.uint8)"
    if len(shape) == 2:
        return "; give each image its shape by images.reshape(-1, C, H, W)"
    return ""


def labels_error(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], images: int) -> DataError:
    """The error of labels that are not integers, one for each image."""
    found, advice = f"{name} {dtype} of the shape {shown(shape, 100)}", ""
    if dtype.kind in "iu" and len(shape) == 1:
        return DataError(
            f"{found}: {counted(images, 'image')}, but {counted(shape[0], 'label')}; expected one for each"
        )
    if dtype.kind in "OSTU":
        advice = "; number the classes by names, labels = np.unique(labels, return_inverse=True)"
    elif len(shape) == 2 and shape[1] > 1:
        advice = "; convert one-hot rows by labels.argmax(axis=1)"
    elif dtype.kind == "f":
        advice = "; convert them by labels.astype(np.int64)"
    return DataError(f"{found}, expected integers of the shape ({images},), one for each image{advice}")


def _checked_split(split: str, part: LabelledImages, data: ImageData) -> LabelledImages:
    """Images as a view (n, C, H, W), labels as int64 (n,)."""
    spooled = isinstance(part.images, Spool | SpooledRows)
    images = part.images if spooled else np.asarray(part.images)
    labels = np.asarray(part.labels)
    found = f"{split} images are {images.dtype} of the shape {shown(images.shape, 100)}"
    if len(images.shape) != 4 or images.dtype != np.uint8:
        raise DataError(
            f"{found}, expected uint8 (n, C, H, W) or (n, H, W, C){images_advice(images.dtype, images.shape)}"
            + "; add the axis of grey images by images[:, None]" * (len(images.shape) == 3)
        )
    if not images.size:
        raise DataError(f"{found}, expected at least one image and one pixel")
    if data.layout is None and not spooled and not images.shape[1] <= MOST_CHANNELS < min(images.shape[2:]):
        raise DataError(
            f'{found}; state what that is: ImageData(..., layout="channels_last") for (n, H, W, C), '
            'layout="channels_first" for (n, C, H, W)'
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise labels_error(f"{split} labels are", labels.dtype, labels.shape, len(images))
    low, high, classes = int(labels.min()), int(labels.max()), len(data.classes)
    if low < 0 or high >= classes:
        raise DataError(
            f"{split} labels run from {low} to {high}, expected 0 to {classes - 1} for {counted(classes, 'class')}"
            + FROM_1 * (low == 1)
        )
    if data.layout == "channels_last" and not spooled:
        images = images.transpose(0, 3, 1, 2)
    return replace(part, images=images, labels=labels.astype(np.int64))
