"""Random choices of samples: which are packed, in which order, in which shard, and in which split.

Every draw depends on a seed, a word for the split and another number, and on nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS

SPLIT_OFF = len(SPLITS)  # the first word of draws by `split_off`: the words below are those of the splits


def shuffled(n: int, seed: int, split: int, number: int) -> NDArray[np.intp]:
    """The numbers 0..n-1 in a random order that depends on the other arguments, (n,).

    The order sorts n words of Philox (Salmon et al. 2011), which are the same in all versions of NumPy. The result of
    `Generator.permutation` is not.
    """
    key = np.array([seed, split << 32 | number], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def deal(rows: NDArray[np.intp], labels: NDArray[np.int64], shards: int) -> list[NDArray[np.intp]]:
    """Deal `rows` (m,), sorted stably by class, round robin to the shards.

    Sizes differ by at most one, and so do the counts of each class, because its rows are consecutive.
    """
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    return [by_class[shard::shards] for shard in range(shards)]


def choose(labels: NDArray[np.int64], limit: int | None, seed: int, split: int) -> NDArray[np.intp]:
    """The rows of a split that are packed, in shuffled order.

    With a limit, rows are taken from each class in turn, in shuffled order, until there are enough.
    """
    order = shuffled(len(labels), seed, split, 0)
    if limit is None or limit >= len(order):
        return order
    shuffled_labels = labels[order]
    turn = np.empty(len(order), np.intp)  # the place of a row within its class
    counts = np.unique(labels, return_counts=True)[1]
    starts = np.repeat(counts.cumsum() - counts, counts)
    turn[np.argsort(shuffled_labels, kind="stable")] = np.arange(len(order)) - starts
    return order[np.sort(np.lexsort((shuffled_labels, turn))[:limit])]


def split_off(labels: NDArray[np.int64], share: float, seed: int, split: int) -> NDArray[np.bool_]:
    """Which samples with these labels (n,) become another split, with this number among SPLITS, bool (n,).

    Of each class it is the share, rounded, but at least one sample, and at most all but one. Of a class with a single
    sample it is none.
    """
    apart = np.zeros(len(labels), bool)
    order = shuffled(len(labels), seed, SPLIT_OFF + split, 0)
    by_class = order[np.argsort(labels[order], kind="stable")]
    start = 0
    for count in np.unique(labels, return_counts=True)[1].tolist():
        apart[by_class[start : start + min(max(round(share * count), 1), count - 1)]] = True
        start += count
    return apart
