"""dptrain.data.manifest: what is written is read back, and nothing else is accepted as a data set."""

from __future__ import annotations

import json
import os
import resource
import shutil
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
from dptrain.checkpoint.format import read_checkpoint
from dptrain.data.manifest import MANIFEST, Manifest, read_manifest, shard_name
from dptrain.data.shard import Samples, read_shard, write_shard
from dptrain.errors import DataError
from dptrain.system.files import file_sha256

SHARD = "train-000-of-002.h5"
OLD = Path(__file__).parents[1] / "fixtures" / "version-1" / "data-set"  # packed by dptrain 0.1.0 with h5py 3.11.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(tmp_path / "set", image_data(), shards=2)
    return tmp_path / "set"


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A data set of version 1, whose shards libhdf5 wrote."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


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


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_shard_is_read_back_as_it_was_written(count: int, folder: Path) -> None:
    manifest = replace(read_manifest(folder), image_shape=(3, 4, 5))
    samples = some_samples(count)
    entry = write_shard(folder / SHARD, samples, "train", 0, 2)
    assert (entry.bytes, entry.sha256) == ((folder / SHARD).stat().st_size, file_sha256(folder / SHARD))
    manifest = replace(manifest, splits={**manifest.splits, "train": (entry, *manifest.splits["train"][1:])})
    read = read_shard(folder, manifest, "train", 0)
    for name in ("images", "labels", "index"):
        assert np.array_equal(getattr(read, name), getattr(samples, name))
        assert getattr(read, name).dtype == getattr(samples, name).dtype


def test_shard_name_has_split_number_and_count() -> None:
    assert shard_name("train", 7, 16) == "train-007-of-016.h5"


def test_any_hdf5_reader_finds_the_same_samples(folder: Path) -> None:
    samples = read_shard(folder, read_manifest(folder), "train", 0)
    with h5py.File(folder / SHARD) as file:
        assert set(file) == {"images", "labels", "index"}
        for name in file:
            assert np.array_equal(file[name][()], getattr(samples, name))
            assert file[name].dtype == getattr(samples, name).dtype
        attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
    assert attributes == {"format": "dptrain-dataset", "version": 2, "split": "train", "shard": 0, "shards": 2}


def test_manifest_is_read_back(folder: Path, old_folder: Path) -> None:
    for one in (folder, old_folder):
        assert read_manifest(one).to_json() == (one / MANIFEST).read_text()


def test_the_identity_of_a_data_set_depends_on_its_contents_only(folder: Path) -> None:
    manifest = read_manifest(folder)

    def with_first(**changes: Any) -> Manifest:
        first, *others = manifest.splits["train"]
        return replace(manifest, splits={**manifest.splits, "train": (replace(first, **changes), *others)})

    for stored_otherwise in (
        with_first(bytes=9**9, sha256="0" * 64, offsets={"images": 0, "labels": 7, "index": 9}),
        replace(manifest, version=3),
    ):
        assert stored_otherwise.sha256 == manifest.sha256
    for other in (with_first(contents_sha256="0" * 64), with_first(samples=3), replace(manifest, seed=7)):
        assert other.sha256 != manifest.sha256


def test_the_identity_is_the_same_with_all_versions_of_h5py_and_numpy(folder: Path) -> None:
    """Files depended on the writer's HDF5. Measured with h5py 3.11.0, 3.15.1, 3.16.0 and NumPy 2.0.0 and 2.4.6."""
    assert read_manifest(folder).sha256 == "25866dce111f80e6f8493927d7d024616b16567fa656248b55fabcfffedaf699"


def test_the_identity_of_a_data_set_of_version_1_is_that_in_its_checkpoints(old_folder: Path) -> None:
    manifest = read_manifest(old_folder)
    assert manifest.sha256 == file_sha256(old_folder / MANIFEST)
    assert manifest.sha256 == read_checkpoint(OLD.parent / "checkpoint.h5").origin.manifest_sha256


def test_a_data_set_of_version_1_is_read(old_folder: Path) -> None:
    """Packed from the same images as this one."""
    data = image_data(train=11, test=5, classes=3, shape=(2, 3, 4))
    manifest = read_manifest(old_folder)
    assert (manifest.version, manifest.samples("train"), manifest.samples("test")) == (1, 11, 5)
    for shard in range(2):
        samples = read_shard(old_folder, manifest, "train", shard)
        assert np.array_equal(samples.images, data.train.images[samples.index])
        assert np.array_equal(samples.labels, data.train.labels[samples.index])


@pytest.mark.parametrize("bit", range(0, 8, 3))
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_one_flipped_bit_anywhere_is_found(place: float, bit: int, folder: Path) -> None:
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert "altered" in refused(folder)


def test_truncated_longer_and_missing_shards_have_different_errors(folder: Path) -> None:
    path = folder / SHARD
    content = path.read_bytes()
    for changed in (content[:-1], content + b"x", b""):
        path.write_bytes(changed)
        assert f"{len(changed):,} bytes, the manifest says {len(content):,}" in refused(folder)
    path.unlink()
    assert "missing" in refused(folder)
    path.mkdir()
    assert "is a folder, expected a regular file" in refused(folder)
    path.rmdir()
    os.mkfifo(path)
    assert "is a named pipe, expected a regular file" in refused(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is a device, expected a regular file" in refused(folder)


def test_shards_may_be_links_to_files_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / SHARD).rename(tmp_path / "elsewhere.h5")
    (folder / SHARD).symlink_to(tmp_path / "elsewhere.h5")
    assert len(read_shard(folder, read_manifest(folder), "train", 0)) == 51


def with_entry(folder: Path, **changes: Any) -> None:
    """Change the manifest's entry of the first training shard."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["splits"]["train"][0].update(changes)
    (folder / MANIFEST).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ({"images": "labels"}, "overlap, or extend beyond the file"),
        ({"labels": "images"}, "overlap, or extend beyond the file"),
        ({"index": 10**18}, "overlap, or extend beyond the file"),
        ({"index": -8}, "is -8, expected a whole number"),
        ({"index": 2**64}, "expected a whole number"),
        ({"index": 4992.0}, "is 4992.0, expected a whole number"),
        ({"index": True}, "is True, expected a whole number"),
        ({"more": 0}, "expected contents_sha256, and offsets of images, labels, index"),
    ],
)
def test_impossible_offsets_are_refused(offsets: dict[str, Any], words: str, folder: Path) -> None:
    there = json.loads((folder / MANIFEST).read_text())["splits"]["train"][0]["offsets"]
    found = {name: there[offset] if isinstance(offset, str) else offset for name, offset in offsets.items()}
    with_entry(folder, offsets=there | found)
    with pytest.raises(DataError, match=r"damaged or edited: splits\.train\[0\]") as caught:
        read_manifest(folder)
    assert words in str(caught.value)


def test_wrong_offsets_are_found(folder: Path) -> None:
    there = json.loads((folder / MANIFEST).read_text())["splits"]["train"][0]["offsets"]
    with_entry(folder, offsets=there | {"images": there["images"] - 1})
    assert "the hash of images, labels and index is not that in the manifest" in refused(folder)


def test_a_shard_far_larger_than_its_samples_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate(1 << 36)
    with_entry(folder, bytes=1 << 36)
    with pytest.raises(DataError, match=r"68,719,476,736 bytes, 51 samples need 4,"):
        read_manifest(folder)
    (folder / SHARD).unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda samples: replace(samples, labels=samples.labels + 3), "labels from 3 to 7"),
        (lambda samples: replace(samples, labels=samples.labels - 1), "labels from -1"),
        (lambda samples: replace(samples, index=samples.index - 1000), "index from -"),
    ],
)
def test_impossible_labels_and_numbers_are_refused(
    change: Callable[[Samples], Samples], words: str, folder: Path
) -> None:
    manifest = read_manifest(folder)
    entry = write_shard(folder / SHARD, change(read_shard(folder, manifest, "train", 0)), "train", 0, 2)
    splits = {**manifest.splits, "train": (entry, *manifest.splits["train"][1:])}
    (folder / MANIFEST).write_text(replace(manifest, splits=splits).to_json())
    assert words in refused(folder)


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


def compressed(file: h5py.File) -> None:
    array = file["images"][()]
    del file["images"]
    file.create_dataset("images", data=array, chunks=array.shape, compression="gzip")


def rename_split(file: h5py.File) -> None:
    file.attrs["split"] = "test"


def add_dataset(file: h5py.File) -> None:
    file["more"] = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_of("images", external=True), "not stored in the file itself"),
        (change_of("images", virtual=True), "not stored in the file itself"),
        (change_of("images", link=h5py.ExternalLink("/tmp/other.h5", "images")), "images is a link"),
        (change_of("images", link=h5py.SoftLink("/labels")), "images is a link"),
        (change_of("images", group=True), "it holds ['index', 'labels']"),
        (change_of("images", cast=lambda array: array.astype(np.float32)), "float32"),
        (change_of("images", cast=lambda array: array[:, :, :-1]), "expected uint8"),
        (change_of("labels", cast=lambda array: array[:-1]), "labels"),
        (change_of("labels", cast=lambda array: array + 3), "labels from 3 to 5"),
        (unwritten, "not stored in full"),
        (compressed, "without compression"),
        (change_of("index", cast=lambda array: array.astype(np.int32)), "int32"),
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
    assert "not a readable shard" in refused(old_folder)


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda raw: {**raw, **changes}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (edited(version=3), "version 3, this program reads versions 1 to 2: use the later dptrain that packed it"),
        (edited(version="2"), "version is '2'"),
        (edited(version=0), "version is 0"),
        (edited(version=True), "version is True"),
        (edited(version=1), "splits.train[0] has offsets or contents_sha256, which version 1 does not have"),
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
            "classes has 100,000 items, expected at most 65,536",
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
        (lambda raw: {key: raw[key] for key in raw if key != "mean"}, "missing mean"),
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
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


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


def test_a_manifest_that_is_no_regular_file_or_too_large_is_refused_at_once(folder: Path) -> None:
    path = folder / MANIFEST
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a named pipe, expected a regular file"):
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
    with pytest.raises(DataError, match=f"the {split} split has no samples"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 3, b"[" * 100_000, b"[" + b"1" * 5000 + b"]"])
def test_manifest_that_is_not_json_is_refused(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_manifest(folder)


def test_the_error_of_a_missing_manifest_says_how_to_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dptrain data-prep"):
        read_manifest(tmp_path)


def test_samples_of_a_manifest_are_the_sum_over_its_shards(folder: Path) -> None:
    manifest: Manifest = read_manifest(folder)
    assert (manifest.shard_count, manifest.samples("train"), manifest.samples("test")) == (2, 101, 37)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from dptrain.data.shard import Samples, write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
samples = Samples(np.zeros((900, 3, 32, 32), np.uint8), np.zeros(900, np.int64), np.zeros(900, np.int64))
try:
    write_shard(Path(sys.argv[1]), samples, "train", 0, 1)
except OSError as error:
    print(error.strerror)
"""


def test_file_that_cannot_grow_is_an_os_error_and_the_process_ends_normally(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.h5")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
