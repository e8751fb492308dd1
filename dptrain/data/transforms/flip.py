"""Mirror images: flips from left to right."""

from __future__ import annotations

import numpy as np

from dptrain.arrays.random import Purpose
from dptrain.data.transforms.transform import Images, Transform, Words


class Flip(Transform):
    """Each image is mirrored if bit 0 of its word is 1 (He et al. 2016, section 4.2)."""

    purpose = Purpose.AUGMENTATION

    def __call__(self, images: Images, words: Words) -> Images:
        mirrored = np.flatnonzero(words[:, 0] & np.uint64(1))
        flipped = images.copy()
        flipped[mirrored] = images[mirrored, :, :, ::-1]
        return flipped


class AlternatingFlip(Flip):
    """A flip drawn once for each sample; the sample is mirrored in every other epoch from then on (Jordan 2024)."""

    purpose = Purpose.ALTERNATING_FLIP
    alternating = True
