"""Random words, keyed by their purpose.

Words are the raw output of Philox4x64-10 (Salmon et al. 2011), a counter-based generator: every version of NumPy gives
the same, and a word can be computed without those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORDS_PER_COUNT = 4  # words that Philox makes from one value of its counter


class Purpose(IntEnum):
    """Every use of randomness in training. 0 is reserved for data_prep."""

    INITIAL_PARAMETERS = 1
    SAMPLE_ORDER = 2
    AUGMENTATION = 3
    LAYER = 4
    ALTERNATING_FLIP = 5
    CUTOUT = 6
    RESIZED_CROP = 7
    BRIGHTNESS = 8
    CONTRAST = 9


@dataclass(frozen=True)
class Draws:
    """The whole key of a microbatch's random draws. `position` is that of its first sample in the shard's epoch."""

    seed: int = 0
    epoch: int = 0
    shard: int = 0
    position: int = 0

    def after(self, samples: int) -> Draws:
        return replace(self, position=self.position + samples)


NO_KEY = Draws()


def random_words(
    seed: int, purpose: Purpose, number: int, count: int, *, epoch: int = 0, stream: int = 0, start: int = 0
) -> NDArray[np.uint64]:
    """`count` words of the sequence (seed, purpose, number, epoch, stream), from its word 4 * `start`.

    `number` is that of a shard or tensor. seed, start, stream < 2**64, epoch < 2**32, number < 2**24.
    """
    key = np.array([seed, purpose << 56 | epoch << 24 | number], np.uint64)
    counter = np.array([start, 0, 0, stream], np.uint64)
    words: NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
    return words
