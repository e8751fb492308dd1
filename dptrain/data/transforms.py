"""Random augmentation of a microbatch of uint8 images, without a loop over images.

Flip and crop are the usual augmentation for CIFAR (He et al. 2016, section 4.2). They share one random word for each
position in the epoch: bit 0 decides the flip, bits 1 to 31 the vertical and bits 32 to 63 the horizontal offset of the
crop. Cutout has a word of its own, with the vertical offset in bits 0 to 31 and the horizontal one in bits 32 to 63.
An alternating flip has one word for each sample of the shard, the same in all epochs.

Test-time augmentation (`views`) draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dptrain.arrays.random import Purpose
from dptrain.errors import UsageError

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

Images = NDArray[np.uint8]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Transform:
    """`apply` makes new images (N, C, H, W) from images (N, C, H, W) and random words (N,).

    There is a word for each position in the epoch. If the transform is `alternating`, there is one for each sample
    instead, drawn once; its bit 0 is inverted in every other epoch.
    """

    apply: Callable[[Images, Words], Images]
    purpose: Purpose = Purpose.AUGMENTATION
    alternating: bool = False


def make_transforms(
    crop: str = "none",
    flip: bool = False,
    *,
    crop_pixels: int = 4,
    alternating_flip: bool = False,
    cutout: int = 0,
    mean: Sequence[float] = (),
) -> list[Transform]:
    """The transforms of a configuration, in order: flip, crop, cutout.

    `crop` is "reflect", "zero" or "none". `cutout` is the side of the square in pixels, or 0; `mean` is the mean pixel
    (C,) that fills it, from 0 to 1.
    """
    transforms: list[Transform] = []
    if flip:
        purpose = Purpose.ALTERNATING_FLIP if alternating_flip else Purpose.AUGMENTATION
        transforms.append(Transform(flipped, purpose, alternating_flip))
    if crop != "none":
        transforms.append(Transform(partial(cropped, border=crop, pixels=crop_pixels)))
    if cutout:
        fill = np.rint(255 * np.asarray(mean)).astype(np.uint8)
        transforms.append(Transform(partial(cut_out, size=cutout, fill=fill), Purpose.CUTOUT))
    return transforms


def flipped(images: Images, words: Words) -> Images:
    """Each image flipped left to right or not."""
    return np.where((words & np.uint64(1)).astype(bool)[:, None, None, None], images[..., ::-1], images)


def cropped(images: Images, words: Words, border: str, pixels: int = 4) -> Images:
    """Each image moved by up to `pixels` in H and W; the border is filled by reflection, or with black ("zero")."""
    margins = ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels))
    padded = np.pad(images, margins, mode="reflect") if border == "reflect" else np.pad(images, margins)
    offsets = np.uint64(2 * pixels + 1)
    down = ((words & LOW) >> np.uint64(1)) % offsets
    right = (words >> HALF) % offsets
    crops = sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    chosen: Images = crops[np.arange(len(images)), :, down.astype(np.intp), right.astype(np.intp)]
    return chosen


def cut_out(images: Images, words: Words, size: int, fill: Images) -> Images:
    """Each image with a square of `size` x `size` pixels set to `fill` (C,); the square is always inside the image.

    Cutout (DeVries and Taylor 2017) in the form of Page 2019, which does not cut the square at the border. There the
    square becomes 0 after normalisation; `fill` is the same value, rounded to a whole pixel value.
    """
    height, width = images.shape[2:]
    top = ((words & LOW) % np.uint64(height - size + 1)).astype(np.intp)
    left = ((words >> HALF) % np.uint64(width - size + 1)).astype(np.intp)
    rows, columns = np.arange(height) - top[:, None], np.arange(width) - left[:, None]
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return np.where(inside[:, None], fill[:, None, None], images)


def views(images: Images, tta: str) -> list[tuple[float, Images]]:
    """Test-time augmentation: the views of images (N, C, H, W), with the weights of their logits in the mean.

    "none" has the images alone. "mirror" has the mirror images too. "mirror-translate" has both (1/4 each), and both
    shifted by one pixel along either direction of the main diagonal, with a reflected border (1/8 each; Jordan 2024).
    """
    mirror = images[..., ::-1]
    if tta == "none":
        return [(1.0, images)]
    if tta == "mirror":
        return [(1 / 2, images), (1 / 2, mirror)]
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    shifted = [padded[:, :, start : start + height, start : start + width] for start in (0, 2)]
    return [(1 / 4, images), (1 / 4, mirror), *((1 / 8, view) for one in shifted for view in (one, one[..., ::-1]))]


def check_views(tta: str, image_shape: tuple[int, int, int]) -> None:
    """UsageError when images (C, H, W) are too small for test-time augmentation."""
    _, height, width = image_shape
    if tta == "mirror-translate" and min(height, width) < 2:
        raise UsageError(f"--tta {tta} needs images of at least 2 x 2 pixels, these are {height} x {width}")


def check_transforms(crop: str, crop_pixels: int, cutout: int, image_shape: tuple[int, int, int]) -> None:
    """UsageError when images (C, H, W) are too small for a reflected border or for the square of cutout."""
    _, height, width = image_shape
    if crop == "reflect" and min(height, width) <= crop_pixels:
        raise UsageError(
            f"--crop reflect needs images of at least {crop_pixels + 1} x {crop_pixels + 1} pixels, these are "
            f"{height} x {width}; "
            "use --crop zero or none, or fewer --crop-pixels"
        )
    if cutout and min(height, width) <= cutout:
        raise UsageError(
            f"--cutout {cutout} needs images of at least {cutout + 1} x {cutout + 1} pixels, these are "
            f"{height} x {width}; "
            "use a smaller square, or --cutout 0 for none"
        )
