"""Checking a packed data set against everything its manifest says, and telling what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.loading import Tally, split_problems, tally
from dptrain.data.manifest import SPLITS, Manifest, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError
from dptrain.system.text import shown

from .pack import channel_statistics, pixel_histogram
from .progress import progress

STATISTICS_TOLERANCE = 1e-9  # of mean and std; the sums are exact, so this only allows for another formula


@dataclass
class Verification:
    """What was found: `problems` is empty when the data set is sound."""

    problems: list[str] = field(default_factory=list)
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    index_ranges: dict[str, str] = field(default_factory=dict)
    manifest_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "class_counts": self.class_counts,
            "index": self.index_ranges,
            "manifest_sha256": self.manifest_sha256,
        }


def verify(folder: Path) -> Verification:
    """Check every hash and every record of a data set; the result lists all that is wrong.

    Mean and standard deviation are computed again; all else is also checked by training and `dptrain eval`. Numbers
    missing from `index` are reported in `index_ranges` and are no problem: a limited set has such gaps.
    """
    result = Verification()
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        result.problems.append(str(error))
        return result
    result.manifest_sha256 = manifest.sha256
    with progress("verifying", sum(manifest.samples(split) for split in SPLITS)) as advance:
        for split in SPLITS:
            histogram = np.zeros((manifest.image_shape[0], 256), np.int64)
            shards: list[Tally] = []
            for shard, entry in enumerate(manifest.splits[split]):
                try:
                    samples = read_shard(folder, manifest, split, shard)
                except DataError as error:
                    result.problems.append(str(error))
                else:
                    histogram += pixel_histogram(samples.images)
                    shards.append(tally(samples, manifest))  # without the images: one shard's are in memory at a time
                advance(entry.samples)
            _check_split(folder, manifest, split, shards, result)
            if split == "train" and len(shards) == manifest.shard_count and manifest.samples(split):
                result.problems += _statistics_problems(folder, manifest, histogram)
    return result


def _check_split(folder: Path, manifest: Manifest, split: str, shards: list[Tally], result: Verification) -> None:
    """Everything that shows only over all shards of a split; `shards` are those that could be read."""
    if not shards:
        return
    result.class_counts[split] = np.sum([shard.classes for shard in shards], axis=0).tolist()
    result.problems += [f"{shown(folder)}: {problem}" for problem in split_problems(manifest, split, shards)]
    index = np.concatenate([shard.index for shard in shards])
    if len(index):
        whole = len(np.unique(index)) == len(index) == index.max() + 1 and index.min() == 0
        result.index_ranges[split] = f"{index.min()}..{index.max()}, " + (
            "every number once" if whole else f"{len(index)} of these numbers"
        )


def _statistics_problems(folder: Path, manifest: Manifest, histogram: NDArray[np.int64]) -> list[str]:
    """Mean or standard deviation in the manifest that the training pixels do not have."""
    problems = []
    mean, std = channel_statistics(histogram)
    for name, stated, found in (("mean", manifest.mean, mean), ("std", manifest.std, std)):
        for channel, (expected, value) in enumerate(zip(stated, found, strict=True)):
            if not math.isclose(expected, value, rel_tol=0, abs_tol=STATISTICS_TOLERANCE):
                problems.append(
                    f"{shown(folder)}: {name} of channel {channel} is {expected} in the manifest, the training images "
                    f"have {value}"
                )
    return problems


def info(folder: Path) -> dict[str, Any]:
    """What the manifest says, as plain values for printing or JSON; reads no shard. Raises DataError."""
    manifest = read_manifest(folder)
    return {
        "folder": str(folder),
        "name": manifest.name,
        "classes": list(manifest.classes),
        "image_shape": list(manifest.image_shape),
        "shards": manifest.shard_count,
        "samples": {split: manifest.samples(split) for split in SPLITS},
        "bytes": sum(entry.bytes for split in SPLITS for entry in manifest.splits[split]),
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "seed": manifest.seed,
        "source": vars(manifest.source).copy(),
        "manifest_sha256": manifest.sha256,
    }
