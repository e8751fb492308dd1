"""The order of the samples of a shard in an epoch: it depends on (seed, epoch, shard) and nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.random import Purpose, random_words


class EpochKey(NamedTuple):
    """What every random choice about the samples of a shard in an epoch depends on."""

    seed: int
    epoch: int
    shard: int

    def words(self, purpose: Purpose, count: int) -> NDArray[np.uint64]:
        """`count` random words for a purpose."""
        return random_words(self.seed, purpose, self.shard, count, epoch=self.epoch)


def shuffled(key: EpochKey, count: int) -> NDArray[np.intp]:
    """The numbers 0 to count-1 in random order, (count,)."""
    return np.argsort(key.words(Purpose.SAMPLE_ORDER, count), kind="stable")
