"""Random crop: shifts of whole pixels."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dptrain.arrays.random import Purpose
from dptrain.data.transforms.transform import HALF, LOW, Images, Transform, Words
from dptrain.errors import UsageError


class Crop(Transform):
    """Each image is moved by up to `pixels` in H and in W (He et al. 2016, section 4.2).

    The border is filled by reflection ("reflect"; the outermost pixel is not repeated) or with black ("zero"). It is a
    window into the padded image, whose vertical offset are bits 1 to 31 of the word, and whose horizontal offset are
    bits 32 to 63, both modulo 2 * `pixels` + 1. Bit 0 belongs to the flip.
    """

    purpose = Purpose.AUGMENTATION

    def __init__(self, border: str, pixels: int = 4) -> None:
        self.border, self.pixels = border, pixels

    def __call__(self, images: Images, words: Words) -> Images:
        offsets = np.uint64(2 * self.pixels + 1)
        down = ((words[:, 0] & LOW) >> np.uint64(1)) % offsets
        right = (words[:, 0] >> HALF) % offsets
        crops = sliding_window_view(self._padded(images), images.shape[2:], axis=(2, 3))
        chosen: Images = crops[np.arange(len(images)), :, down.astype(np.intp), right.astype(np.intp)]
        return chosen

    def _padded(self, images: Images) -> Images:
        """As np.pad, in half of its time."""
        n, channels, height, width = images.shape
        p = self.pixels
        padded = np.zeros((n, channels, height + 2 * p, width + 2 * p), np.uint8)
        padded[:, :, p:-p, p:-p] = images
        if self.border == "reflect":
            rows = padded[:, :, p:-p]
            rows[..., :p], rows[..., -p:] = images[..., p:0:-1], images[..., -2 : -p - 2 : -1]
            padded[:, :, :p], padded[:, :, -p:] = rows[:, :, p:0:-1], rows[:, :, -2 : -p - 2 : -1]
        return padded

    def check(self, image_shape: tuple[int, int, int]) -> None:
        _, height, width = image_shape
        if self.border == "reflect" and min(height, width) <= self.pixels:
            raise UsageError(
                f"--crop reflect needs images of at least {self.pixels + 1} x {self.pixels + 1} pixels, these are "
                f"{height} x {width}; use --crop zero or none, or fewer --crop-pixels"
            )
