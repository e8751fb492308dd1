"""Random augmentation of a microbatch of uint8 images, without a loop over images.

Flip and crop are the usual augmentation for CIFAR (He et al. 2016, section 4.2). They share one random word for each
image: bit 0 decides the flip, bits 1 to 31 the vertical and bits 32 to 63 the horizontal offset of the crop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dptrain.errors import UsageError

BORDER = 4  # pixels that a crop can move in each direction
OFFSETS = np.uint64(2 * BORDER + 1)

Images = NDArray[np.uint8]
Words = NDArray[np.uint64]
Transform = Callable[[Images, Words], Images]  # new images (N, C, H, W) from images (N, C, H, W) and words (N,)


def make_transforms(crop: str, flip: bool) -> list[Transform]:
    """The transforms of a configuration, in order: a flip, and a crop with a border ("reflect", "zero" or "none")."""
    transforms: list[Transform] = []
    if flip:
        transforms.append(flipped)
    if crop != "none":
        transforms.append(partial(cropped, border=crop))
    return transforms


def flipped(images: Images, words: Words) -> Images:
    """Each image flipped left to right or not."""
    return np.where((words & np.uint64(1)).astype(bool)[:, None, None, None], images[..., ::-1], images)


def cropped(images: Images, words: Words, border: str) -> Images:
    """Each image moved by up to 4 pixels in H and W; the border is filled by reflection, or with black ("zero")."""
    margins = ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER))
    padded = np.pad(images, margins, mode="reflect") if border == "reflect" else np.pad(images, margins)
    down = ((words & np.uint64(0xFFFFFFFF)) >> np.uint64(1)) % OFFSETS
    right = (words >> np.uint64(32)) % OFFSETS
    crops = sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    chosen: Images = crops[np.arange(len(images)), :, down.astype(np.intp), right.astype(np.intp)]
    return chosen


def check_crop(border: str, image_shape: tuple[int, int, int]) -> None:
    """UsageError when images (C, H, W) are too small for a reflected border."""
    _, height, width = image_shape
    if border == "reflect" and min(height, width) <= BORDER:
        raise UsageError(
            f"--crop reflect needs images larger than {BORDER} pixels, these are {height} x {width}; "
            "use --crop zero or none"
        )
