"""Arrays -> data set folder: shuffle, deal to the shards, compute mean and deviation, write.

The format is that of dptrain.data.manifest and dptrain.data.shard. The same arrays, shard count, seed and limit give
the same data set with all versions of the libraries.

Shapes: n samples, C channels, H and W pixels, K classes, S shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS, Manifest, Preparation, Provenance, ShardEntry, shard_name
from dptrain.data.shard import write_shard
from dptrain.errors import UsageError
from dptrain.system.text import counted, shown

from . import report
from .copies import Fingerprints
from .draw import deal, shuffled
from .images import FROM_1, ImageData, LabelledImages, checked
from .splits import SHARDS, choose_rows, most_shards
from .staging import install, staged

__all__ = ["ImageData", "LabelledImages", "Preparation", "Provenance", "pack"]


def pack(
    out: Path,
    data: ImageData,
    *,
    shards: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    validation_fraction: float | None = None,
    force: bool = False,
    command: Sequence[str] = (),
) -> Manifest:
    """Write `data` as a data set of `shards` shards a split to the folder `out`.

    Without `shards` there are 8, or 4, 2 or 1 if a split has fewer samples; a note says so.

    Samples are shuffled once by `seed` and dealt to the shards: their sizes, and their counts of each class, differ by
    at most one. `limit` keeps that many training samples and a fifth as many of each other split (at least one for each
    shard), with equally many samples of each class as far as possible. With `validation_fraction`, this share of each
    class of the training samples becomes the validation split. `index` in a shard is the sample's number in its split
    of the source; a validation sample that was a training sample keeps that number. `command` is written to the
    manifest (see Manifest).

    Raises UsageError for counts that do not fit, DataError for arrays or names that cannot be packed and for a folder
    that is in use or cannot be written; no files are left then. Notes on suspicious data go to standard error.
    """
    if not 0 <= seed < 2**63 or (limit is not None and limit < 1):
        raise UsageError(f"--seed {seed}, --limit {limit}: expected 0 to 2^63 - 1, and a limit of at least 1")
    data = checked(data)
    options = {"limit": limit, "validation_fraction": validation_fraction, "seed": seed}
    given = shards is not None
    if shards is None:
        shards = most_shards({split: part.labels for split, part in data.splits.items()}, **options)
    parts, chosen = _choose_all(data, shards=shards, **options)
    if not given and shards < SHARDS[0]:
        report(
            f"note: packed in {counted(shards, 'shard')} instead of {SHARDS[0]}, because a split has few samples; a "
            f"run can have at most {counted(shards, 'rank')}"
        )
    fingerprints = Fingerprints()
    histogram = np.zeros((data.train.images.shape[1], 256), np.int64)  # of the training pixels
    splits: dict[str, list[ShardEntry]] = {split: [] for split in chosen}
    with staged(out, force=force) as folder:
        for split, samples in parts.items():

            def seen(images: NDArray[np.uint8], rows: NDArray[np.intp], split: str = split) -> None:
                if split == "train":
                    histogram[...] += pixel_histogram(images)
                fingerprints.add(split, images, rows)

            for shard, dealt in enumerate(deal(chosen[split], samples.labels, shards)):
                rows = dealt[shuffled(len(dealt), seed, SPLITS.index(split), shard + 1)]
                part = _Chosen(_ChosenImages(samples.images, rows, seen), samples.labels[rows], rows.astype(np.int64))
                path = folder / shard_name(split, shard, shards)
                splits[split].append(write_shard(path, part, split, shard, shards))
        manifest = _manifest(data, splits, histogram, seed, command)
        install(folder, manifest.to_json())
    for note in fingerprints.notes(parts):
        report(f"note: {note}")
    if not histogram[:, 2:].any():
        report("note: all pixels are 0 or 1, expected 0 to 255; were they scaled to 0..1 before the cast to uint8?")
    return manifest


def _manifest(
    data: ImageData,
    splits: Mapping[str, Sequence[ShardEntry]],
    histogram: NDArray[np.int64],
    seed: int,
    command: Sequence[str],
) -> Manifest:
    """The manifest of the shards that are written; the histogram (C, 256) is that of the training pixels."""
    mean, std = channel_statistics(histogram)
    return Manifest(
        name=data.name,
        classes=tuple(data.classes),
        image_shape=data.train.images.shape[1:],
        mean=mean,
        std=std,
        seed=seed,
        source=data.source or Provenance(data.name),
        splits={split: tuple(entries) for split, entries in splits.items()},
        command=tuple(command),
        preparation=data.preparation,
    )


@dataclass(frozen=True)
class _ChosenImages:
    """The images of some rows, which are read when they are written, and then passed to `seen` with their rows."""

    images: Any
    rows: NDArray[np.intp]
    seen: Callable[[NDArray[np.uint8], NDArray[np.intp]], None]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.images.shape[1:]

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        # Contiguous (n, C, H, W) for every layout of the source: the bytes depend on the images alone.
        images = np.ascontiguousarray(self.images[self.rows[rows]])
        self.seen(images, self.rows[rows])
        return images


@dataclass(frozen=True)
class _Chosen:
    """The samples of one shard."""

    images: _ChosenImages
    labels: NDArray[np.int64]
    index: NDArray[np.int64]


def _choose_all(data: ImageData, **options: Any) -> tuple[dict[str, LabelledImages], dict[str, NDArray[np.intp]]]:
    """The source of each split, and its rows that are packed, by `choose_rows`; notes on classes without images."""
    if len(data.classes) == 1:
        report(
            "note: there is only one class, so there is nothing to learn; a folder of pictures needs a subfolder for "
            "each class"
        )
    numbered = data.preparation is None  # classes of pictures have names
    if numbered and min(int(part.labels.min()) for part in data.splits.values()) == 1:
        report(f"note: no label is 0{FROM_1}")
    rows = choose_rows({split: part.labels for split, part in data.splits.items()}, **options)
    parts = {split: data.splits.get(split, data.train) for split in rows}
    for split, part in parts.items():
        counts = np.bincount(part.labels[rows[split]], minlength=len(data.classes))
        if empty := [name for name, count in zip(data.classes, counts, strict=True) if not count]:
            names = shown(", ".join(empty), 200)
            report(f"note: the {split} split has no images of {counted(len(empty), 'class')}: {names}")
    return parts, rows


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
