"""Arrays -> data set folder: shuffle, deal to the shards, measure mean and deviation, write.

The format itself is dptrain.data.manifest. The same arrays, shard count, seed and limit give the same data
set, whatever the versions of libraries.

Shapes: n samples, C channels, H and W pixels, K classes, S shards.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Manifest, ShardEntry, shard_name
from dptrain.data.shard import Samples, write_shard
from dptrain.errors import UsageError
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown

from .checks import ImageData, LabelledImages, checked, doubtful
from .progress import progress
from .signals import signals_held
from .staging import staged

__all__ = ["ImageData", "LabelledImages", "channel_statistics", "deal", "pack", "pixel_histogram", "shuffled"]

TEST_SHARE = 5  # of a limited set: one test sample for as many training samples, as in CIFAR-10


def pack(
    out: Path, data: ImageData, *, shards: int = 8, seed: int = 0, limit: int | None = None, force: bool = False
) -> Manifest:
    """Write `data` as a data set of `shards` shards a split to the folder `out`.

    Samples are shuffled once by `seed` and dealt so that shard sizes, and the counts of each class over the
    shards, differ by at most one. `limit` keeps that many training samples and a fifth as many test samples
    (but at least one a shard), classes in equal numbers as far as they last. `index` in a shard is the
    sample's number in its split of the source.

    Raises UsageError for counts that do not fit, DataError for unfit arrays or names or a folder that is taken or
    cannot be written; then nothing is left behind. What is hardly meant is noted on standard error.
    """
    if not 0 <= seed < 2**63 or (limit is not None and limit < 1):
        raise UsageError(f"--seed {seed}, --limit {limit}: expected 0 to 2^63 - 1, and a limit of at least 1")
    data = checked(data)
    channels, height, width = data.train.images.shape[1:]
    chosen = {"train": _choose(data.train.labels, limit, seed, 0)}
    test_limit = None if limit is None else max(limit // TEST_SHARE, shards)
    chosen["test"] = _choose(data.test.labels, test_limit, seed, 1)
    for split in SPLITS:
        _check_shards(split, len(chosen[split]), shards)
    histogram = pixel_histogram(data.train.images, chosen["train"])
    mean, std = channel_statistics(histogram)
    counts = {
        split: np.bincount(getattr(data, split).labels[rows], minlength=len(data.classes))
        for split, rows in chosen.items()
    }
    for note in doubtful(data, counts, histogram):
        write_to_stderr(f"data_prep: note: {shown(note)}")
    with staged(out, force=force) as staging:
        with progress("packing", sum(map(len, chosen.values()))) as advance:
            splits: dict[str, tuple[ShardEntry, ...]] = {}
            for number, split in enumerate(SPLITS):
                part: LabelledImages = getattr(data, split)
                entries = []
                for shard, rows in enumerate(deal(chosen[split], part.labels, shards)):
                    rows = rows[shuffled(len(rows), seed, number, shard + 1)]
                    entries.append(_write(staging.folder, part, rows, split, shard, shards))
                    advance(len(rows))
                splits[split] = tuple(entries)
        manifest = Manifest(
            data.name, tuple(data.classes), (channels, height, width), mean, std, seed, data.source, splits
        )
        staging.install(manifest.to_json())
    return manifest


def shuffled(n: int, seed: int, *purpose: int) -> NDArray[np.intp]:
    """A random order of 0..n-1 by (seed, purpose), (n,).

    The order that sorts n words of Philox (Salmon et al. 2011): NumPy keeps a bit generator's raw words the
    same from version to version, which it does not promise of `Generator.permutation`.
    """
    key = np.array([seed, 0], np.uint64)
    for number in purpose:
        key[1] = (int(key[1]) << 32) | number
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def deal(rows: NDArray[np.intp], labels: NDArray[np.int64], shards: int) -> list[NDArray[np.intp]]:
    """Deal `rows` (m,), sorted stably by class, round robin to the shards.

    Sizes differ by at most one, and so do the counts of any class: its rows are a run in the sorted order.
    """
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    return [by_class[shard::shards] for shard in range(shards)]


def pixel_histogram(images: NDArray[np.uint8], rows: NDArray[np.intp] | None = None) -> NDArray[np.int64]:
    """How often each channel has each value, int64 (C, 256), over images[rows] (all of them when None)."""
    channels = images.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    n = len(images) if rows is None else len(rows)
    block = 2000  # images at a time: bincount makes eight bytes of every pixel
    for start in range(0, n, block):
        part = images[start : start + block] if rows is None else images[rows[start : start + block]]
        for channel in range(channels):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    return counts


def channel_statistics(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels scaled to 0..1, from a histogram (C, 256).

    Sums are exact integers, so the result depends neither on an order nor on a machine. A channel of one
    single value has no deviation; it gets 1.0, with which normalising turns it into zeros.
    """
    means, deviations = [], []
    for channel in counts.tolist():
        n = sum(channel)
        total = sum(value * count for value, count in enumerate(channel))
        squares = sum(value * value * count for value, count in enumerate(channel))
        variance = n * squares - total * total  # times (255 n) squared
        means.append(total / (255 * n))
        deviations.append(math.sqrt(variance) / (255 * n) if variance else 1.0)
    return tuple(means), tuple(deviations)


def _choose(labels: NDArray[np.int64], limit: int | None, seed: int, split: int) -> NDArray[np.intp]:
    """The rows of a split that are packed, in shuffled order.

    Below `limit`, rows are taken in turn from every class, in shuffled order each, until `limit` is reached.
    """
    order = shuffled(len(labels), seed, split, 0)
    if limit is None or limit >= len(order):
        return order
    shuffled_labels = labels[order]
    by_class = np.argsort(shuffled_labels, kind="stable")
    starts = np.searchsorted(shuffled_labels[by_class], shuffled_labels[by_class])
    turn = np.empty(len(order), np.intp)
    turn[by_class] = np.arange(len(order)) - starts  # the how-manieth of its class a row is
    return order[np.sort(np.lexsort((shuffled_labels, turn))[:limit])]


def _write(
    folder: Path, part: LabelledImages, rows: NDArray[np.intp], split: str, shard: int, shards: int
) -> ShardEntry:
    """Write one shard and describe it."""
    path = folder / shard_name(split, shard, shards)
    # In the order of the axes, whichever the source has: the bytes of a shard depend on the images alone.
    samples = Samples(np.ascontiguousarray(part.images[rows]), part.labels[rows], rows.astype(np.int64))
    with signals_held():
        return write_shard(path, samples, split, shard, shards)


def _check_shards(split: str, samples: int, shards: int) -> None:
    """UsageError unless every shard gets a sample."""
    if not 1 <= shards <= samples:
        raise UsageError(
            f"--shards {shards}: the {split} split has {samples:,} samples and every shard needs at least one; "
            f"choose from 1 to {samples:,}"
        )
