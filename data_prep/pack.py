"""Arrays -> data set folder: shuffle, deal to the shards, compute mean and deviation, write.

The format is that of dptrain.data.manifest and dptrain.data.shard. The same arrays, shard count, seed and limit give
the same data set with all versions of the libraries.

Shapes: n samples, C channels, H and W pixels, K classes, S shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Manifest, Provenance, ShardEntry, shard_name
from dptrain.data.shard import write_shard
from dptrain.errors import UsageError
from dptrain.system.text import shown

from . import report
from .images import ImageData, LabelledImages, checked
from .staging import install, staged

__all__ = ["ImageData", "LabelledImages", "Provenance", "pack"]

TEST_SHARE = 5  # training samples per test sample in a limited data set, as in CIFAR-10


def pack(
    out: Path,
    data: ImageData,
    *,
    shards: int = 8,
    seed: int = 0,
    limit: int | None = None,
    force: bool = False,
    command: Sequence[str] = (),
) -> Manifest:
    """Write `data` as a data set of `shards` shards a split to the folder `out`.

    Samples are shuffled once by `seed` and dealt to the shards: their sizes, and their counts of each class, differ by
    at most one. `limit` keeps that many training samples and a fifth as many test samples (at least one for each
    shard), with equally many samples of each class as far as possible. `index` in a shard is the sample's number in its
    split of the source. `command` is written to the manifest (see Manifest).

    Raises UsageError for counts that do not fit, DataError for arrays or names that cannot be packed and for a folder
    that is in use or cannot be written; no files are left then. Notes on suspicious data go to standard error.
    """
    if not 0 <= seed < 2**63 or (limit is not None and limit < 1):
        raise UsageError(f"--seed {seed}, --limit {limit}: expected 0 to 2^63 - 1, and a limit of at least 1")
    data = checked(data)
    chosen = _choose_all(data, shards, limit, seed)
    histogram = np.zeros((data.train.images.shape[1], 256), np.int64)
    splits: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    with staged(out, force=force) as folder:
        for number, split in enumerate(SPLITS):
            samples: LabelledImages = getattr(data, split)
            for shard, dealt in enumerate(deal(chosen[split], samples.labels, shards)):
                rows = dealt[shuffled(len(dealt), seed, number, shard + 1)]
                counted = histogram if split == "train" else np.zeros_like(histogram)
                part = _Chosen(
                    _ChosenImages(samples.images, rows, counted), samples.labels[rows], rows.astype(np.int64)
                )
                path = folder / shard_name(split, shard, shards)
                splits[split].append(write_shard(path, part, split, shard, shards))
        mean, std = channel_statistics(histogram)
        manifest = Manifest(
            name=data.name,
            classes=tuple(data.classes),
            image_shape=data.train.images.shape[1:],
            mean=mean,
            std=std,
            seed=seed,
            source=data.source or Provenance(data.name),
            splits={split: tuple(entries) for split, entries in splits.items()},
            command=tuple(command),
        )
        install(folder, manifest.to_json())
    if not histogram[:, 2:].any():
        report("note: all pixels are 0 or 1, expected 0 to 255; were they scaled to 0..1 before the cast to uint8?")
    return manifest


@dataclass(frozen=True)
class _ChosenImages:
    """The images of some rows, which are read when they are written, and then counted in a histogram (C, 256)."""

    images: Any
    rows: NDArray[np.intp]
    histogram: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.images.shape[1:]

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        # Contiguous (n, C, H, W) for every layout of the source: the bytes depend on the images alone.
        images = np.ascontiguousarray(self.images[self.rows[rows]])
        np.add(self.histogram, pixel_histogram(images), out=self.histogram)
        return images


@dataclass(frozen=True)
class _Chosen:
    """The samples of one shard."""

    images: _ChosenImages
    labels: NDArray[np.int64]
    index: NDArray[np.int64]


def _choose_all(data: ImageData, shards: int, limit: int | None, seed: int) -> dict[str, NDArray[np.intp]]:
    """The rows of each split that are packed; UsageError if they are fewer than the shards."""
    limits = (limit, None if limit is None else max(limit // TEST_SHARE, shards))
    chosen = {}
    for number, split in enumerate(SPLITS):
        labels = getattr(data, split).labels
        rows = chosen[split] = _choose(labels, limits[number], seed, number)
        if not 1 <= shards <= len(rows):
            raise UsageError(
                f"--shards {shards}: the {split} split has {len(rows):,} samples and every shard needs at least one; "
                f"choose from 1 to {len(rows):,}"
            )
        counts = np.bincount(labels[rows], minlength=len(data.classes))
        if empty := [name for name, count in zip(data.classes, counts, strict=True) if not count]:
            report(f"note: the {split} split has no images of {len(empty)} classes: {shown(', '.join(empty), 200)}")
    return chosen


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


def pixel_histogram(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel of images (n, C, H, W) has each value, int64 (C, 256)."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), 2000):  # images at a time: bincount converts pixels to int64
        for channel, pixels in enumerate(images[start : start + 2000].swapaxes(0, 1)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    return counts


def channel_statistics(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels scaled to 0..1, from a histogram (C, 256).

    Sums are exact integers, so the result is the same on all machines. The deviation of a constant channel is replaced
    by 1.0, so that normalised values are zero.
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

    With a limit, rows are taken from each class in turn, in shuffled order, until there are enough.
    """
    order = shuffled(len(labels), seed, split, 0)
    if limit is None or limit >= len(order):
        return order
    shuffled_labels = labels[order]
    turn = np.empty(len(order), np.intp)  # the place of a row within its class
    for label in np.unique(labels):
        of_class = np.flatnonzero(shuffled_labels == label)
        turn[of_class] = np.arange(len(of_class))
    return order[np.sort(np.lexsort((shuffled_labels, turn))[:limit])]
