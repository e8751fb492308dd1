"""dptrain.data.labels: the samples of each class without reading images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import image_data

from dptrain.data.labels import count_labels
from dptrain.data.manifest import read_manifest
from dptrain.errors import DataError


def test_counts_are_those_of_the_packed_labels(folder: Path) -> None:
    data = image_data()
    assert count_labels(folder, read_manifest(folder)) == {
        "train": np.bincount(data.train.labels, minlength=5).tolist(),
        "test": np.bincount(data.test.labels, minlength=5).tolist(),
    }


def test_images_are_not_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    before = count_labels(folder, manifest)
    path = folder / manifest.splits["train"][0].file
    content = bytearray(path.read_bytes())
    offsets = manifest.splits["train"][0].offsets
    assert offsets is not None
    content[offsets.images] ^= 1
    path.write_bytes(content)
    assert count_labels(folder, manifest) == before


def test_a_data_set_of_version_1_has_no_counts(old_folder: Path) -> None:
    assert count_labels(old_folder, read_manifest(old_folder)) is None


@pytest.mark.parametrize("label", [-1, 5, 2**62])
def test_numbers_that_are_no_labels_are_an_error(label: int, folder: Path) -> None:
    manifest = read_manifest(folder)
    entry = manifest.splits["test"][1]
    assert entry.offsets is not None
    content = bytearray((folder / entry.file).read_bytes())
    content[entry.offsets.labels : entry.offsets.labels + 8] = np.array([label], "<i8").tobytes()
    (folder / entry.file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{entry.file}: damaged: found no {entry.samples} labels from 0 to 4"):
        count_labels(folder, manifest)


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_shard_that_is_cut_short_is_an_error(left: float, folder: Path) -> None:
    manifest = read_manifest(folder)
    path = folder / manifest.splits["train"][1].file
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(DataError, match="damaged: found no "):
        count_labels(folder, manifest)
    path.unlink()
    with pytest.raises(DataError, match="the labels cannot be read: No such file"):
        count_labels(folder, manifest)
