"""Cutout: a square of one color in each image."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dptrain.arrays.random import Purpose
from dptrain.data.transforms.transform import Images, Transform, Words, halves
from dptrain.errors import UsageError


class Cutout(Transform):
    """A square of `size` x `size` pixels, always inside the image, is set to `fill`, uint8 (C,).

    Cutout (DeVries and Taylor 2017) in the form of Page 2019, which does not cut the square at the border. There the
    square becomes 0 after normalisation; the mean color is the same value, rounded to a whole pixel value. The vertical
    offset are bits 0 to 31 of the word modulo H - `size` + 1, the horizontal one bits 32 to 63 modulo W - `size` + 1.
    """

    purpose = Purpose.CUTOUT

    def __init__(self, size: int, fill: Images) -> None:
        self.size, self.fill = size, fill

    def __call__(self, images: Images, words: Words) -> Images:
        n, _, height, width = images.shape
        top, left = halves(words[:, 0])
        top, left = top % np.uint64(height - self.size + 1), left % np.uint64(width - self.size + 1)
        cut = images.copy()
        squares = sliding_window_view(cut, (self.size, self.size), axis=(2, 3), writeable=True)
        squares[np.arange(n), :, top.astype(np.intp), left.astype(np.intp)] = self.fill[:, None, None]
        return cut

    def check(self, image_shape: tuple[int, int, int]) -> None:
        _, height, width = image_shape
        if min(height, width) <= self.size:
            raise UsageError(
                f"--cutout {self.size} needs images of at least {self.size + 1} x {self.size + 1} pixels, these are "
                f"{height} x {width}; use a smaller square, or --cutout 0 for none"
            )
