"""Damaged shards for tests, and the error of reading them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dptrain.data.manifest import MANIFEST, read_manifest
from dptrain.data.shard import Samples, read_shard
from dptrain.errors import DataError
from dptrain.system.files import file_sha256

SHARD = "train-000-of-002.h5"


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_shard(folder, read_manifest(folder), "train", 0)
    assert SHARD in str(caught.value)
    return str(caught.value)


def accept_bytes(folder: Path) -> None:
    """Write the size and hash of the present shard to the manifest, so that only the inner checks can refuse it."""
    manifest = read_manifest(folder)
    path = folder / SHARD
    first = replace(manifest.splits["train"][0], bytes=path.stat().st_size, sha256=file_sha256(path))
    splits = {**manifest.splits, "train": (first, *manifest.splits["train"][1:])}
    (folder / MANIFEST).write_text(replace(manifest, splits=splits).to_json())


def some_samples(count: int) -> Samples:
    generator = np.random.default_rng(count)
    return Samples(
        generator.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8),
        np.arange(count, dtype=np.int64) % 2,
        np.arange(count, dtype=np.int64),
    )
