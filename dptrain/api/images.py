"""Images that a program passes to a model: arrays, files, and pictures of Pillow."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptrain.api.packing import PathLike
from dptrain.data_prep.pictures.decode import Form, decode_file, decode_picture, quiet_pillow
from dptrain.errors import DataError, UsageError
from dptrain.system.paths import absolute_path
from dptrain.system.text import shown

Picture = PathLike | Image.Image
AT_ONCE = 256  # pictures that may be open
EXPECTED = "expected an array of images, or a list of paths and pictures of Pillow"

_pillow = threading.Lock()  # one picture may be in several lists


def pixels_of(images: NDArray[np.uint8] | Iterable[Picture], form: Form) -> NDArray[np.uint8]:
    """uint8 (n, C, H, W) of an array of this shape, or of pictures, which get the form.

    UsageError for something else, DataError for a broken picture or an array of another shape or type.
    """
    if isinstance(images, np.ndarray):
        _check_array(images, form.image_shape)
        return images
    found = shown(repr(images), 80)
    if isinstance(images, str | os.PathLike | Image.Image):
        raise UsageError(f"images: found {found}, {EXPECTED}: put [ ] around it")
    if not isinstance(images, Iterable):
        raise UsageError(f"images: found {found}, {EXPECTED}")
    if form.image_shape[0] not in (1, 3):
        raise UsageError(f"images have {form.image_shape[0]} channels, and pictures are grey or RGB: pass an array")
    pixels: list[NDArray[np.uint8]] = []
    iterator = iter(images)
    with quiet_pillow(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        while group := list(islice(iterator, AT_ONCE)):
            pixels += threads.map(partial(_decoded, form=form), group)
    return np.stack(pixels) if pixels else np.empty((0, *form.image_shape), np.uint8)


def _decoded(picture: Any, form: Form) -> NDArray[np.uint8]:
    """The pixels (C, H, W) of one picture."""
    if not isinstance(picture, str | os.PathLike | Image.Image):
        stack = "; for arrays, pass np.stack(images)" if isinstance(picture, np.ndarray) else ""
        raise UsageError(f"images: found {shown(repr(picture), 80)} in the list, {EXPECTED}{stack}")
    try:
        if isinstance(picture, Image.Image):
            with _pillow:
                return decode_picture(picture, form)
        return decode_file(absolute_path(picture), form)[0]
    except DataError as error:
        raise DataError(f"{shown(picture, 200)}: {error}") from error


def _check_array(images: NDArray[Any], image_shape: tuple[int, int, int]) -> None:
    """DataError unless the images are uint8 (n, C, H, W), with the expression that converts them, if there is one."""
    if images.dtype == np.uint8 and images.shape[1:] == image_shape:
        return
    values, axes = _values(images), _axes(images.shape, image_shape)
    advice = "" if values is None or axes is None else f"; pass {values}{axes}"
    expected = f"uint8 (n, {', '.join(map(str, image_shape))})"
    raise DataError(f"images are {images.dtype} {images.shape}, expected {expected}{advice}")


def _values(images: NDArray[Any]) -> str | None:
    """What converts the values to uint8."""
    if images.dtype == np.uint8:
        return "images"
    if images.dtype.kind not in "fiu" or not images.size or not (images.min() >= 0 and images.max() <= 255):
        return None
    shares = images.dtype.kind == "f" and images.max() <= 1
    return '(255 * images).round().astype("uint8")' if shares else 'images.round().astype("uint8")'


def _axes(shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> str | None:
    """What converts the shape to (n, C, H, W)."""
    channels, height, width = image_shape
    last = (height, width, channels)
    one: dict[tuple[int, ...], str] = {image_shape: "[None]", last: ".transpose(2, 0, 1)[None]"}
    several: dict[tuple[int, ...], str] = {image_shape: "", last: ".transpose(0, 3, 1, 2)"}
    if channels == 1:
        one[height, width], several[height, width] = "[None, None]", "[:, None]"
    return one.get(shape, several.get(shape[1:]))
