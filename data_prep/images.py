"""Sources of images with labels, and the checks and conversions before anything is written.

Shapes: n samples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Provenance, check_names
from dptrain.errors import DataError
from dptrain.system.text import shown

MOST_CHANNELS = 4  # in images whose layout is recognised: grey, grey and alpha, RGB, RGBA
LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class LabelledImages:
    """One split of a source: images uint8 (n, C, H, W) or (n, H, W, C), labels of any integer type (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]


@dataclass(frozen=True)
class ImageData:
    """The result of a source: both splits in the order of the source, and their description.

    `source` states where the images come from (default: only the data set's name). `layout` states the order of the
    axes. It may be omitted if the shape is (n, C, H, W) with C of at most 4, and H and W above 4.
    """

    name: str
    classes: Sequence[str]
    train: LabelledImages
    test: LabelledImages
    source: Provenance | None = None
    layout: Literal["channels_first", "channels_last"] | None = None


@dataclass(frozen=True)
class ImageSource:
    """A command of data_prep: its name, its help, its arguments, and how to read its images.

    `read` gets the parsed arguments. Besides those of `add_arguments`, they have `seed`. It raises DataError.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    read: Callable[[argparse.Namespace], ImageData]


def checked(data: ImageData) -> ImageData:
    """The same data with images (n, C, H, W), labels int64 and classes a tuple; DataError for what cannot be packed."""
    try:
        check_names(data.name, data.classes)
        if data.layout not in (None, *LAYOUTS):
            raise DataError(f"layout is {shown(repr(data.layout), 60)}, expected {' or '.join(map(repr, LAYOUTS))}")
        train, test = (_checked_split(split, getattr(data, split), data) for split in SPLITS)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"train images (n, C, H, W) are {_shape(train.images)}, test images {_shape(test.images)}; expected "
                "the same C, H and W"
            )
    except DataError as error:
        raise DataError(f"data set {shown(repr(data.name), 60)}: {error}") from None
    return replace(data, classes=tuple(data.classes), train=train, test=test, layout="channels_first")


def _checked_split(split: str, part: LabelledImages, data: ImageData) -> LabelledImages:
    images = _checked_images(split, np.asarray(part.images), data.layout)
    return LabelledImages(images, _checked_labels(split, np.asarray(part.labels), len(images), len(data.classes)))


def _checked_images(split: str, images: NDArray[Any], layout: str | None) -> NDArray[np.uint8]:
    """The images as (n, C, H, W), without a copy."""
    if images.ndim != 4:
        advice = {
            3: "grey images (n, H, W) get their channel by images[:, None]",
            2: "rows of pixels become images by images.reshape(n, C, H, W)",
        }.get(images.ndim, "images of different sizes must first be scaled to one size")
        raise DataError(f"{split} images have the shape {_shape(images)}, expected (n, C, H, W); {advice}")
    if images.dtype != np.uint8:
        advice = {
            "f": "convert values of 0 to 1 by (255 * images).round().astype(np.uint8), of 0 to 255 without the 255 *",
            "b": "convert them by 255 * images.astype(np.uint8)",
        }.get(images.dtype.kind, "convert values of 0 to 255 by images.astype(np.uint8)")
        raise DataError(f"{split} images are {images.dtype}, expected uint8; {advice}")
    if 0 in images.shape:
        what = "has images without pixels" if len(images) else "has no images"
        raise DataError(f"the {split} split {what}: {_shape(images)}; expected at least one image")
    if layout is None:
        second, third, last = images.shape[1:]
        if not second <= MOST_CHANNELS < min(third, last):
            likely = "(n, H, W, C)" if last <= MOST_CHANNELS < min(second, third) else "(n, C, H, W) or (n, H, W, C)"
            raise DataError(
                f"{split} images have the shape {_shape(images)}, probably {likely}; state it: ImageData(..., "
                'layout="channels_last") for (n, H, W, C), layout="channels_first" for (n, C, H, W)'
            )
    return images.transpose(0, 3, 1, 2) if layout == "channels_last" else images


def _checked_labels(split: str, labels: NDArray[Any], samples: int, classes: int) -> NDArray[np.int64]:
    """The labels as int64 (n,)."""
    if labels.shape != (samples,):
        advice = ""
        if labels.shape == (samples, 1):
            advice = "; remove the second axis by labels[:, 0]"
        elif labels.ndim == 2 and labels.shape[0] == samples:
            advice = "; one-hot rows become labels by labels.argmax(axis=1)"
        raise DataError(
            f"{split} labels have the shape {_shape(labels)}, expected ({samples},), one for each image{advice}"
        )
    if labels.dtype.kind not in "iu":
        advice = "convert them by labels.astype(np.int64)" if labels.dtype.kind in "fb" else "number the classes from 0"
        raise DataError(f"{split} labels are {labels.dtype}, expected an integer type; {advice}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        row = int(labels.argmin() if low < 0 else labels.argmax())
        advice = "; subtract 1" if (low, high) == (1, classes) else ""
        raise DataError(
            f"{split} label {low if low < 0 else high} of image {row}: labels run from {low} to {high}, expected 0 to "
            f"{classes - 1} for {classes} classes{advice}"
        )
    return labels.astype(np.int64)


def _shape(array: NDArray[Any]) -> str:
    return shown(array.shape, 100)
