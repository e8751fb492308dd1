"""What a transform is, and how it draws numbers from random words.

A shard has random words for each purpose, epoch and position in the epoch. So a draw does not depend on the rank, the
thread, the time, or other transforms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.random import Purpose

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

Images = NDArray[np.uint8]
Words = NDArray[np.uint64]


class Transform:
    """Makes new images (N, C, H, W) from images (N, C, H, W) and random words (N, `words`); it does not change these.

    There are `words` words of the `purpose` for each position in the epoch. Transforms of the same purpose get the same
    words. If the transform is `alternating`, there are words for each sample instead, drawn once; their bit 0 is
    inverted in every other epoch.
    """

    purpose: Purpose
    words = 1
    alternating = False

    def __call__(self, images: Images, words: Words) -> Images:
        raise NotImplementedError

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """UsageError when images (C, H, W) are too small."""


def halves(words: Words) -> tuple[Words, Words]:
    """Bits 0 to 31 and bits 32 to 63 of words of any shape."""
    return words & LOW, words >> HALF


def uniform(words: Words, bits: int = 64) -> NDArray[np.float64]:
    """Numbers from 0 to 1, without 1, from words of so many bits; of 64 bits, the upper 53 are used."""
    used = min(bits, 53)
    return (words >> np.uint64(bits - used)).astype(np.float64) * 2.0**-used
