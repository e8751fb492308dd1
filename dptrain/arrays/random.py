"""Random words, keyed by what they are for: the one place that lists every use of chance in training.

Words are the raw output of Philox4x64-10 (Salmon et al. 2011), a counter-based generator: their values are
fixed by the algorithm, not by NumPy's version, and any of them can be had without drawing the ones before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What words are drawn for; no two purposes share a word. 0 is left to data_prep."""

    INITIAL_PARAMETERS = 1
    SAMPLE_ORDER = 2
    AUGMENTATION = 3


def random_words(seed: int, purpose: Purpose, number: int, count: int, *, epoch: int = 0) -> NDArray[np.uint64]:
    """The first `count` words of (seed, purpose, number, epoch); `number` is that of a shard or parameter.

    seed < 2**64, epoch < 2**32, number < 2**24.
    """
    key = np.array([seed, purpose << 56 | epoch << 24 | number], np.uint64)
    words: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(count)
    return words
