"""dptrain.data.loading: a rank gets the shards it asks for, complete and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import image_data

from data_prep.pack import pack
from dptrain.data.loading import load_shards
from dptrain.data.manifest import REQUIRED, Manifest
from dptrain.data.shard import Samples
from dptrain.errors import DataError

SHARDS = 4
TRAIN, TEST = 101, 37


@pytest.fixture
def data_set(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path / "set", pack(tmp_path / "set", image_data(train=TRAIN, test=TEST), shards=SHARDS)


def by_index(shards: dict[int, Samples]) -> Samples:
    """All samples in the order of the source."""
    names = ("images", "labels", "index")
    images, labels, index = (np.concatenate([getattr(part, name) for part in shards.values()]) for name in names)
    order = np.argsort(index)
    return Samples(images[order], labels[order], index[order])


@pytest.mark.parametrize("threads", [1, 3])
def test_all_shards_together_are_the_source(data_set: tuple[Path, Manifest], threads: int) -> None:
    loaded = load_shards(*data_set, range(SHARDS), threads)
    source = image_data(train=TRAIN, test=TEST)
    for split, images, labels in (
        (loaded.train, source.train.images, source.train.labels),
        (loaded.test, source.test.images, source.test.labels),
    ):
        assert list(split) == list(range(SHARDS))
        samples = by_index(split)
        np.testing.assert_array_equal(samples.index, np.arange(len(labels)))
        np.testing.assert_array_equal(samples.images, images)
        np.testing.assert_array_equal(samples.labels, labels)


def test_ranks_get_the_same_shards_as_one_process(data_set: tuple[Path, Manifest]) -> None:
    whole = load_shards(*data_set, range(SHARDS), 2)
    part = load_shards(*data_set, range(1, 3), 2)
    assert list(part.train) == list(part.test) == [1, 2]
    for shard in (1, 2):
        np.testing.assert_array_equal(part.train[shard].images, whole.train[shard].images)
        np.testing.assert_array_equal(part.test[shard].index, whole.test[shard].index)


def test_only_the_requested_splits_are_read(data_set: tuple[Path, Manifest]) -> None:
    folder, manifest = data_set
    for entry in manifest.splits["train"]:
        (folder / entry.file).unlink()
    loaded = load_shards(folder, manifest, range(SHARDS), 2, splits=("test",))
    assert loaded.train == {}
    assert sum(len(samples) for samples in loaded.test.values()) == TEST


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("split", REQUIRED)
def test_shard_with_one_flipped_bit_is_reported(data_set: tuple[Path, Manifest], split: str, threads: int) -> None:
    folder, manifest = data_set
    path = folder / manifest.splits[split][2].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name}: .*SHA-256 .*altered"):
        load_shards(folder, manifest, range(SHARDS), threads)
    load_shards(folder, manifest, range(2), threads)  # a rank does not check the shards of other ranks


def test_missing_shard_is_reported(data_set: tuple[Path, Manifest]) -> None:
    folder, manifest = data_set
    path = folder / manifest.splits["train"][3].file
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: .*No such file"):
        load_shards(folder, manifest, range(SHARDS), 2)
