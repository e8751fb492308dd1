"""dptrain.data.manifest: a written manifest can be read back, and nothing else is accepted as a data set."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
import pytest
from damaged_shards import SHARD, accept_bytes, refused
from data_sets import image_data

from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.manifest import MANIFEST, Manifest, Offsets, read_manifest, shard_name
from dptrain.data.shard import read_shard
from dptrain.errors import DataError
from dptrain.system.files import file_sha256

VERSION_1 = Path(__file__).parents[1] / "fixtures" / "version-1"


def test_shard_name_has_split_number_and_count() -> None:
    assert shard_name("train", 7, 16) == "train-007-of-016.h5"


def test_manifest_is_read_back(folder: Path, old_folder: Path) -> None:
    for one in (folder, old_folder):
        assert read_manifest(one).to_json() == (one / MANIFEST).read_text()


def test_the_identity_of_a_data_set_depends_on_its_contents_only(folder: Path) -> None:
    manifest = read_manifest(folder)

    def with_first(**changes: Any) -> Manifest:
        first, *others = manifest.splits["train"]
        return replace(manifest, splits={**manifest.splits, "train": (replace(first, **changes), *others)})

    for stored_otherwise in (
        with_first(bytes=9**9, sha256="0" * 64, offsets=Offsets(0, 7, 9)),
        replace(manifest, version=2),
    ):
        assert stored_otherwise.sha256 == manifest.sha256
    for other in (with_first(contents_sha256="0" * 64), with_first(samples=3), replace(manifest, seed=7)):
        assert other.sha256 != manifest.sha256


def test_the_identity_is_the_same_with_all_versions_of_h5py_and_numpy(folder: Path) -> None:
    """Old files depended on the writer's HDF5. Measured with h5py 3.11.0, 3.15.1, 3.16.0 and NumPy 2.0.0 and 2.4.6."""
    assert read_manifest(folder).sha256 == "25866dce111f80e6f8493927d7d024616b16567fa656248b55fabcfffedaf699"


def test_the_identity_of_a_data_set_of_version_1_agrees_with_its_checkpoints(old_folder: Path) -> None:
    manifest = read_manifest(old_folder)
    assert manifest.sha256 == file_sha256(old_folder / MANIFEST)
    assert manifest.sha256 == read_checkpoint(VERSION_1 / "checkpoint.h5").origin.manifest_sha256


def test_a_data_set_of_version_1_is_read(old_folder: Path) -> None:
    """Packed from the same images as this one."""
    data = image_data(train=11, test=5, classes=3, shape=(2, 3, 4))
    manifest = read_manifest(old_folder)
    assert (manifest.version, manifest.samples("train"), manifest.samples("test")) == (1, 11, 5)
    for shard in range(2):
        samples = read_shard(old_folder, manifest, "train", shard)
        assert np.array_equal(samples.images, data.train.images[samples.index])
        assert np.array_equal(samples.labels, data.train.labels[samples.index])


def change_of(name: str, **changes: Any) -> Callable[[h5py.File], None]:
    """Replace a dataset of a shard by one that is stored or shaped another way."""

    def change(file: h5py.File) -> None:
        array = file[name][()]
        del file[name]
        if "external" in changes:
            file.create_dataset(name, shape=array.shape, dtype=array.dtype, external=[("/etc/passwd", 0, 10**6)])
        elif "link" in changes:
            file[name] = changes["link"]
        elif "virtual" in changes:
            layout = h5py.VirtualLayout(array.shape, array.dtype)
            layout[:] = h5py.VirtualSource("other.h5", name, array.shape)
            file.create_virtual_dataset(name, layout)
        elif "group" in changes:
            file.create_group(name)
        else:
            file[name] = changes["cast"](array)

    return change


def unwritten(file: h5py.File) -> None:
    """3 GiB by its shape, nothing on the disk."""
    del file["images"]
    file.create_dataset("images", (6, 2, 16384, 16384), np.uint8, chunks=(1, 1, 1024, 1024), fletcher32=True)


def rename_split(file: h5py.File) -> None:
    file.attrs["split"] = "test"


def add_dataset(file: h5py.File) -> None:
    file["more"] = 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_of("images", external=True), "unable to open external raw data file"),
        (change_of("images", virtual=True), "not stored in full"),
        (change_of("images", link=h5py.ExternalLink("/tmp/other.h5", "images")), "it holds {'index': "),
        (change_of("images", link=h5py.SoftLink("/labels")), "it holds {'index': "),
        (change_of("images", group=True), "it holds {'index': "),
        (change_of("images", cast=lambda array: array.astype(np.float32)), "'<f4'"),
        (change_of("images", cast=lambda array: array[:, :, :-1]), "expected {'images': ('|u1', (6, 2, 3, 4))"),
        (change_of("labels", cast=lambda array: array[:-1]), "labels"),
        (change_of("labels", cast=lambda array: array + 3), "labels from 3 to 5"),
        (unwritten, "not stored in full"),
        (change_of("index", cast=lambda array: array.astype(np.int32)), "'<i4'"),
        (rename_split, "'split': 'test'"),
        (add_dataset, "more"),
    ],
)
def test_other_contents_in_version_1_are_refused_before_they_are_read(
    change: Callable[[h5py.File], None], words: str, old_folder: Path
) -> None:
    with h5py.File(old_folder / SHARD, "r+") as file:
        change(file)
    accept_bytes(old_folder)
    assert words in refused(old_folder)


def test_file_of_version_1_that_is_not_hdf5_is_refused(old_folder: Path) -> None:
    (old_folder / SHARD).write_bytes(b"not HDF5" * 100)
    accept_bytes(old_folder)
    assert "OSError" in refused(old_folder)


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda raw: {**raw, **changes}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edited(version=4), "version 4, this program reads versions 1 to 3: use the later dptrain that packed it"),
        (edited(version=10**4000), "version 1000"),
        (edited(version="2"), "version is '2', expected a whole number from 1 to 3"),
        (edited(version=0), "version is 0"),
        (edited(version=True), "version is True"),
        (edited(version=1), "offsets and contents_sha256 belong to version 2"),
        (edited(format="other"), "not a dptrain manifest"),
        (edited(surplus=1), "unknown surplus"),
        (edited(image_shape=[3, 32]), "damaged or edited"),
        (edited(image_shape=[0, 5, 7]), "image_shape"),
        (edited(image_shape=[2**20, 2**20, 2**20]), "image_shape"),
        (edited(image_shape=[1.0, 5, 7]), "image_shape[0] is 1.0"),
        (edited(image_shape=5), "image_shape is 5, expected a list"),
        (edited(classes=[]), "a list of one or more names"),
        (edited(classes=["a", "a"]), "classes 0 and 1 have the same name"),
        (
            edited(classes=[str(number) for number in range(10**5)]),
            "classes is a list of 100,000 items, expected a list of at most 65,536",
        ),
        (edited(classes=["x" * 10**6]), "classes[0] is"),
        (edited(classes=[7]), "classes[0] is 7, expected text"),
        (edited(name="\x1b[31m" + "x" * 2000), "name is"),
        (edited(name=None), "name is None"),
        (edited(seed=-1), "seed is -1"),
        (edited(seed=0.5), "seed is 0.5"),
        (edited(source={"name": "x", "archive": None, "sha256": None, "published": 1}), "source.published is 1"),
        (edited(splits={"train": [7], "test": []}), "splits.train[0] is 7, expected a JSON object"),
        (edited(mean=[0.5]), "mean"),
        (edited(mean=[float("nan"), 0.5]), "mean[0] is nan, expected a finite number"),
        (edited(std=[0.0, 1.0]), "std above 0"),
        (edited(std=[float("inf"), 1.0]), "std[0] is inf, expected a finite number"),
        (edited(splits={"train": []}), "splits"),
        (edited(splits={"train": [], "test": []}), "expected"),
        (edited(source={"archive": "x"}), "the keys of source: missing name"),
        (edited(mean=[10**400, 0.5]), "expected a finite number"),
        (lambda raw: {key: raw[key] for key in raw if key != "mean"}, "missing mean"),
        (lambda raw: {key: raw[key] for key in raw if key != "version"}, "version is None"),
        (lambda raw: [raw], "not a dptrain manifest"),
    ],
)
def test_inconsistent_manifest_is_refused(edit: Callable[[dict[str, Any]], Any], words: str, folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    assert words in str(caught.value)
    assert MANIFEST in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change", [{"file": "../../etc/passwd"}, {"samples": -1}, {"bytes": "many"}, {"sha256": "12"}, {"sha256": "zz"}]
)
def test_inconsistent_shard_entry_is_refused(change: dict[str, Any], folder: Path) -> None:
    path = folder / MANIFEST
    raw = json.loads(path.read_text())
    raw["splits"]["train"][0].update(change)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="damaged or edited"):
        read_manifest(folder)


def test_a_manifest_that_is_not_a_regular_file_or_is_too_large_is_refused_at_once(folder: Path) -> None:
    path = folder / MANIFEST
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        read_manifest(folder)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"1,099,511,627,776 bytes, expected at most 8,388,608"):
        read_manifest(folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_samples_is_refused(split: str, folder: Path) -> None:
    path = folder / MANIFEST
    raw = json.loads(path.read_text())
    for entry in raw["splits"][split]:
        entry["samples"] = 0
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"{split} shards have 0 to 0 samples, expected .* a sample"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 3, b"[" * 100_000, b"[" + b"1" * 5000 + b"]"])
def test_manifest_that_is_not_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_manifest(folder)


def test_the_error_of_a_missing_manifest_says_how_to_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dptrain prep"):
        read_manifest(tmp_path)


def test_samples_of_a_manifest_are_the_sum_over_its_shards(folder: Path) -> None:
    manifest: Manifest = read_manifest(folder)
    assert (manifest.shard_count, manifest.samples("train"), manifest.samples("test")) == (2, 101, 37)


def test_a_path_that_is_not_a_data_set_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for name, words in {
        "archive.zip": r"is a file, expected the folder of a packed data set$",
        "empty": r"not a data set: no manifest.json \(was packing interrupted\?\); pack one first, for example: ",
        "photos": r"not a data set: no manifest.json; give the folder of a packed data set$",
        "missing": r"no such folder; pack one first",
    }.items():
        with pytest.raises(DataError, match=rf"{name}: {words}"):
            read_manifest(tmp_path / name)


def test_a_folder_that_cannot_be_listed_is_not_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r"not a data set: no manifest.json"):
        read_manifest(tmp_path)
