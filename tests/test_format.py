"""dptrain.data.format: what is written is read back, and nothing else is taken for a data set."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_sets import image_data

from data_prep.pack import pack
from dptrain.data.format import (
    MANIFEST,
    Manifest,
    Samples,
    file_sha256,
    read_manifest,
    read_proven,
    read_shard,
    shard_name,
    write_shard,
)
from dptrain.errors import DataError

SHARD = "train-000-of-002.h5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(tmp_path / "set", image_data(), shards=2)
    return tmp_path / "set"


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_shard(folder, read_manifest(folder), "train", 0)
    assert SHARD in str(caught.value)
    return str(caught.value)


def accept_bytes(folder: Path) -> None:
    """Let the manifest vouch for the shard as it is now, so that only the inner checks can refuse it."""
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


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_shard_is_read_back_as_it_was_written(count: int, folder: Path) -> None:
    manifest = replace(read_manifest(folder), image_shape=(3, 4, 5))
    samples = some_samples(count)
    write_shard(folder / SHARD, samples, "train", 0, 2)
    entry = replace(
        manifest.splits["train"][0],
        samples=count,
        bytes=(folder / SHARD).stat().st_size,
        sha256=file_sha256(folder / SHARD),
    )
    manifest = replace(manifest, splits={**manifest.splits, "train": (entry, *manifest.splits["train"][1:])})
    read = read_shard(folder, manifest, "train", 0)
    for name in ("images", "labels", "index"):
        assert np.array_equal(getattr(read, name), getattr(samples, name))
        assert getattr(read, name).dtype == getattr(samples, name).dtype


def test_shard_name_sorts_and_tells_its_place() -> None:
    assert shard_name("train", 7, 16) == "train-007-of-016.h5"


def test_manifest_is_read_back_and_its_hash_is_that_of_the_file(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.to_json() == (folder / MANIFEST).read_text()
    assert manifest.sha256 == file_sha256(folder / MANIFEST)


@pytest.mark.parametrize("bit", range(0, 8, 3))
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_one_flipped_bit_anywhere_is_seen(place: float, bit: int, folder: Path) -> None:
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert "altered" in refused(folder)


def test_truncated_longer_and_missing_shards_are_told_apart(folder: Path) -> None:
    path = folder / SHARD
    content = path.read_bytes()
    for changed in (content[:-1], content + b"x", b""):
        path.write_bytes(changed)
        assert f"{len(changed):,} bytes, the manifest says {len(content):,}" in refused(folder)
    path.unlink()
    assert "missing" in refused(folder)
    path.mkdir()
    with pytest.raises(DataError):
        read_proven(folder, replace(read_manifest(folder).splits["train"][0], bytes=path.stat().st_size))


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


def rename_split(file: h5py.File) -> None:
    file.attrs["split"] = "test"


def add_dataset(file: h5py.File) -> None:
    file["more"] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_of("images", external=True), "not stored in the file itself"),
        (change_of("images", virtual=True), "not stored in the file itself"),
        (change_of("images", link=h5py.ExternalLink("/tmp/other.h5", "images")), "link to elsewhere"),
        (change_of("images", link=h5py.SoftLink("/labels")), "link to elsewhere"),
        (change_of("images", group=True), "not stored in the file itself"),
        (change_of("images", cast=lambda array: array.astype(np.float32)), "float32"),
        (change_of("images", cast=lambda array: array[:, :, :-1]), "expected uint8"),
        (change_of("labels", cast=lambda array: array[:-1]), "labels"),
        (change_of("labels", cast=lambda array: array + 3), "labels from 3 to 7"),
        (change_of("labels", cast=lambda array: array - 1), "labels from -1"),
        (change_of("index", cast=lambda array: array.astype(np.int32)), "int32"),
        (rename_split, "'split': 'test'"),
        (add_dataset, "more"),
    ],
)
def test_contents_of_another_kind_are_refused_before_they_are_read(
    change: Callable[[h5py.File], None], words: str, folder: Path
) -> None:
    with h5py.File(folder / SHARD, "r+") as file:
        change(file)
    accept_bytes(folder)
    assert words in refused(folder)


def test_file_that_is_not_hdf5_is_refused(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"not HDF5" * 100)
    accept_bytes(folder)
    assert "not a readable shard" in refused(folder)


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda raw: {**raw, **changes}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edited(version=2), "version 2, this program reads version 1"),
        (edited(format="other"), "not a dptrain manifest"),
        (edited(surplus=1), "surplus"),
        (edited(image_shape=[3, 32]), "damaged or edited"),
        (edited(image_shape=[0, 5, 7]), "image_shape"),
        (edited(classes=[]), "0 classes"),
        (edited(mean=[0.5]), "mean"),
        (edited(mean=[float("nan"), 0.5]), "mean"),
        (edited(std=[0.0, 1.0]), "std above 0"),
        (edited(std=[float("inf"), 1.0]), "std above 0"),
        (edited(seed=float("inf")), "OverflowError"),
        (edited(splits={"train": []}), "splits"),
        (edited(splits={"train": [], "test": []}), "expected"),
        (edited(source={"name": "x"}), "damaged or edited"),
        (lambda raw: {key: raw[key] for key in raw if key != "mean"}, "keys"),
        (lambda raw: [raw], "not a dptrain manifest"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(edit: Callable[[dict[str, Any]], Any], words: str, folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    assert words in str(caught.value)
    assert MANIFEST in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"file": "../../etc/passwd"}, {"samples": -1}, {"bytes": "many"}, {"sha256": "12"}, {"sha256": "zz"}]
)
def test_shard_entry_that_does_not_fit_is_refused(change: dict[str, Any], folder: Path) -> None:
    path = folder / MANIFEST
    raw = json.loads(path.read_text())
    raw["splits"]["train"][0].update(change)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="damaged or edited"):
        read_manifest(folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_samples_is_refused(split: str, folder: Path) -> None:
    path = folder / MANIFEST
    raw = json.loads(path.read_text())
    for entry in raw["splits"][split]:
        entry["samples"] = 0
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"the {split} split has no samples"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 3])
def test_manifest_that_is_not_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_manifest(folder)


def test_missing_manifest_tells_how_to_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dptrain data-prep"):
        read_manifest(tmp_path)


def test_samples_of_a_manifest_are_the_sum_over_its_shards(folder: Path) -> None:
    manifest: Manifest = read_manifest(folder)
    assert (manifest.shard_count, manifest.samples("train"), manifest.samples("test")) == (2, 101, 37)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from dptrain.data.format import Samples, write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
samples = Samples(np.zeros((900, 3, 32, 32), np.uint8), np.zeros(900, np.int64), np.zeros(900, np.int64))
try:
    write_shard(Path(sys.argv[1]), samples, "train", 0, 1)
except OSError as error:
    print(error.strerror)
"""


def test_file_that_cannot_grow_is_an_os_error_and_the_process_ends_well(tmp_path: Path) -> None:
    # libhdf5 writing to the file itself ended in a segmentation fault at exit.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.h5")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
