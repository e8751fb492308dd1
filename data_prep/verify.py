"""Checks a packed data set against its manifest, and describes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.labels import count_labels
from dptrain.data.loading import Tally, split_problems, tally
from dptrain.data.manifest import Manifest, read_manifest
from dptrain.data.shard import read_shard
from dptrain.errors import DataError
from dptrain.system.text import shown

from . import report
from .pack import channel_statistics, pixel_histogram

STATISTICS_TOLERANCE = 1e-9  # of mean and std; the sums are exact, so this only allows for another formula


@dataclass
class Verification:
    """The result of `verify`; without `problems` the data set is sound."""

    problems: list[str] = field(default_factory=list)
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    manifest_sha256: str | None = None


def verify(folder: Path) -> Verification:
    """Check every hash and every record of a data set; the result lists all problems.

    Only this function recomputes mean and standard deviation; training and `dptrain eval` check everything else too.
    `index` may have gaps, as in a limited data set.
    """
    result = Verification()
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        result.problems.append(str(error))
        return result
    result.manifest_sha256 = manifest.sha256
    for split in manifest.split_names:
        histogram = np.zeros((manifest.image_shape[0], 256), np.int64)
        tallies: list[Tally] = []  # without the images: those of one shard are in memory at a time
        for shard in range(manifest.shard_count):
            try:
                samples = read_shard(folder, manifest, split, shard)
            except DataError as error:
                result.problems.append(str(error))
            else:
                histogram += pixel_histogram(samples.images)
                tallies.append(tally(samples, manifest))
        if tallies:
            result.class_counts[split] = np.sum([one.classes for one in tallies], axis=0).tolist()
            problems = split_problems(manifest, split, tallies)
            if split == "train" and len(tallies) == manifest.shard_count:
                problems += _statistics_problems(manifest, histogram)
            result.problems += [f"{shown(folder)}: {problem}" for problem in problems]
    return result


def _statistics_problems(manifest: Manifest, histogram: NDArray[np.int64]) -> list[str]:
    stated, found = (manifest.mean, manifest.std), channel_statistics(histogram)
    if np.allclose(stated, found, rtol=0, atol=STATISTICS_TOLERANCE):
        return []
    return [f"mean and std of the channels are {stated} in the manifest, {found} in the training images"]


def info(folder: Path) -> dict[str, Any]:
    """The manifest as plain values for printing or JSON, and the samples of each class in each split.

    Only the labels of the shards are read. The counts are None if that fails, which is reported, and for format
    version 1. Raises DataError.
    """
    manifest = read_manifest(folder)
    facts: dict[str, Any] = {"folder": str(folder), **json.loads(manifest.to_json())}
    del facts["splits"], facts["format"], facts["version"]
    facts["command"] = list(manifest.command)
    facts["preparation"] = None if manifest.preparation is None else asdict(manifest.preparation)
    facts["shards"] = manifest.shard_count
    facts["samples"] = {split: manifest.samples(split) for split in manifest.split_names}
    facts["bytes"] = sum(entry.bytes for split in manifest.split_names for entry in manifest.splits[split])
    facts["manifest_sha256"] = manifest.sha256
    try:
        facts["class_counts"] = count_labels(folder, manifest)
    except DataError as error:
        report(f"note: {error}")
        facts["class_counts"] = None
    return facts
