"""What can be packed: arrays and names are checked before any work, and brought to one form.

Shapes: n samples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Provenance
from dptrain.data.names import check_names
from dptrain.errors import DataError
from dptrain.system.text import shown

MOST_CHANNELS = 4  # of images whose layout is recognised: grey, grey and alpha, RGB, RGBA
LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class LabelledImages:
    """One split of a source: images uint8 (n, C, H, W) or (n, H, W, C), labels of any integer type (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]


@dataclass(frozen=True)
class ImageData:
    """What a source gives: both splits, in the source's own order, and what they are.

    `layout` says which axes of the images are meant. It may be left out where the shape leaves no doubt: 1 to 4
    channels first, and more than 4 pixels in height and width.
    """

    name: str
    classes: Sequence[str]
    source: Provenance
    train: LabelledImages
    test: LabelledImages
    layout: Literal["channels_first", "channels_last"] | None = None


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
        }.get(images.ndim, "images of different sizes must be brought to one size first")
        raise DataError(f"{split} images have the shape {_shape(images)}, expected (n, C, H, W); {advice}")
    if images.dtype != np.uint8:
        raise DataError(f"{split} images are {images.dtype}, expected uint8; {_to_uint8(images.dtype)}")
    if 0 in images.shape:
        what = "has no images" if not len(images) else f"has images without pixels, {_shape(images)}"
        raise DataError(f"the {split} split {what}; expected at least one image")
    layout = layout or _layout_of(split, images)
    ordered: NDArray[np.uint8] = images if layout == "channels_first" else images.transpose(0, 3, 1, 2)
    return ordered


def _layout_of(split: str, images: NDArray[np.uint8]) -> str:
    """channels_first where the shape leaves no doubt; DataError otherwise."""
    second, third, last = images.shape[1:]
    if second <= MOST_CHANNELS < min(third, last):
        return "channels_first"
    likely = (
        f"looks like (n, H, W, C), {last} channel{'s'[: last > 1]} last"
        if last <= MOST_CHANNELS < min(second, third)
        else "may be (n, C, H, W) or (n, H, W, C)"
    )
    raise DataError(
        f"{split} images {_shape(images)}: the shape {likely}; say which it is: "
        'ImageData(..., layout="channels_last") for (n, H, W, C), ImageData(..., layout="channels_first") for '
        "(n, C, H, W)"
    )


def _to_uint8(dtype: np.dtype[Any]) -> str:
    """How to convert images of another type."""
    if dtype.kind == "f":
        return "convert values of 0 to 1 by (255 * images).round().astype(np.uint8), of 0 to 255 without the 255 *"
    if dtype.kind == "b":
        return "convert them by 255 * images.astype(np.uint8)"
    if dtype.kind in "iu":
        return "convert values of 0 to 255 by images.astype(np.uint8)"
    return "convert the pixels to numbers from 0 to 255 first"


def _checked_labels(split: str, labels: NDArray[Any], samples: int, classes: int) -> NDArray[np.int64]:
    """The labels as int64 (n,)."""
    if labels.shape != (samples,):
        advice = ""
        if labels.shape == (samples, 1):
            advice = "; remove the second axis by labels[:, 0]"
        elif labels.ndim == 2 and labels.shape[0] == samples:
            advice = "; one-hot rows become labels by labels.argmax(axis=1)"
        raise DataError(f"{split} labels have the shape {_shape(labels)}, expected ({samples},), one an image{advice}")
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


def doubtful(data: ImageData, counts: dict[str, NDArray[np.int64]], histogram: NDArray[np.int64]) -> list[str]:
    """Notes on what can be packed but is hardly meant.

    `counts` (K,) of each split are the packed samples of each class, `histogram` (C, 256) is of the training pixels.
    """
    notes = []
    for split, count in counts.items():
        empty = [shown(data.classes[number], 60) for number in np.flatnonzero(count == 0).tolist()]
        if empty:
            some = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            notes.append(f"the {split} split has no images of {len(empty)} of {len(count)} classes: {some}")
    if not histogram[:, 2:].any():
        notes.append("all pixels are 0 or 1, expected 0 to 255; were they scaled to 0..1 before the cast to uint8?")
    return notes
