"""The number of samples of each class, from the labels alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dptrain.data.manifest import Manifest, ShardEntry
from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.text import shown


def count_labels(folder: Path, manifest: Manifest) -> dict[str, list[int]] | None:
    """The number of samples of each class in each split, or None for a data set of format version 1.

    Only the labels are read, 8 bytes a sample, so the hashes are not checked. DataError if they cannot be labels.
    """
    if manifest.version == 1:
        return None  # its files do not state where the labels are
    return {
        split: np.sum([_count(folder, one, len(manifest.classes)) for one in manifest.splits[split]], axis=0).tolist()
        for split in manifest.split_names
    }


def _count(folder: Path, entry: ShardEntry, classes: int) -> list[int]:
    path = Path(folder) / entry.file
    assert entry.offsets is not None
    try:
        with files.open_regular(path) as file:
            file.seek(entry.offsets.labels)
            labels = np.frombuffer(file.read(8 * entry.samples), "<i8")
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shown(path)}: the labels cannot be read: {reason}") from error
    if len(labels) != entry.samples or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(f"{shown(path)}: damaged: found no {entry.samples:,} labels from 0 to {classes - 1}")
    counts: list[int] = np.bincount(labels, minlength=classes).tolist()
    return counts
