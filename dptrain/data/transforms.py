"""Random flip and crop of a microbatch of uint8 images, without a loop over images.

Both are the usual CIFAR augmentation (He et al. 2016, section 4.2). One random word an image decides: bit 0 the flip,
bits 1 to 31 the vertical and bits 32 to 63 the horizontal offset of the crop.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dptrain.errors import UsageError

BORDER = 4  # pixels that a crop can move in each direction
OFFSETS = 2 * BORDER + 1


def flipped(images: NDArray[np.uint8], words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """images (N, C, H, W), each flipped left to right or not, by words (N,)."""
    return np.where((words & np.uint64(1)).astype(bool)[:, None, None, None], images[..., ::-1], images)


def cropped(images: NDArray[np.uint8], words: NDArray[np.uint64], border: str) -> NDArray[np.uint8]:
    """images (N, C, H, W), each moved by up to 4 pixels in H and W, by words (N,).

    Beyond the border the image is reflected (`border` "reflect") or black ("zero").
    """
    height, width = images.shape[2:]
    margins = ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER))
    padded = np.pad(images, margins, mode="reflect") if border == "reflect" else np.pad(images, margins)
    down = ((words & np.uint64(0xFFFFFFFF)) >> np.uint64(1)) % np.uint64(OFFSETS)
    right = (words >> np.uint64(32)) % np.uint64(OFFSETS)
    crops = sliding_window_view(padded, (height, width), axis=(2, 3))
    chosen: NDArray[np.uint8] = crops[np.arange(len(images)), :, down.astype(np.intp), right.astype(np.intp)]
    return chosen


def check_crop(border: str, image_shape: tuple[int, int, int]) -> None:
    """UsageError when images (C, H, W) are too small to be reflected at their border."""
    _, height, width = image_shape
    if border == "reflect" and min(height, width) <= BORDER:
        raise UsageError(
            f"--crop reflect needs images larger than {BORDER} pixels, these are {height} x {width}; "
            "use --crop zero or none"
        )
