"""dptrain.data.shard: samples are read back as written, and a damaged shard is refused."""

from __future__ import annotations

import json
import os
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
from damaged_shards import SHARD, refused, some_samples

from dptrain.data.manifest import MANIFEST, read_manifest
from dptrain.data.shard import Samples, read_shard, write_shard
from dptrain.errors import DataError
from dptrain.system.files import file_sha256


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


def test_any_hdf5_reader_finds_the_same_samples(folder: Path) -> None:
    samples = read_shard(folder, read_manifest(folder), "train", 0)
    with h5py.File(folder / SHARD) as file:
        assert set(file) == {"images", "labels", "index"}
        for name in file:
            assert np.array_equal(file[name][()], getattr(samples, name))
            assert file[name].dtype == getattr(samples, name).dtype
        attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
    assert attributes == {"format": "dptrain-dataset", "version": 3, "split": "train", "shard": 0, "shards": 2}


@pytest.mark.parametrize("bit", range(0, 8, 3))
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_one_flipped_bit_anywhere_is_found(place: float, bit: int, folder: Path) -> None:
    path = folder / SHARD
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    assert "altered" in refused(folder)


def test_truncated_longer_and_missing_shards_are_refused(folder: Path) -> None:
    path = folder / SHARD
    content = path.read_bytes()
    for changed in (content[:-1], b""):
        path.write_bytes(changed)
        assert f"{len(changed):,} bytes without the SHA-256 in the manifest: cut short" in refused(folder)
    path.write_bytes(content + b"x")
    assert f"{len(content) + 1:,} bytes, expected at most {len(content):,}" in refused(folder)
    path.unlink()
    assert "No such file" in refused(folder)
    path.mkdir()
    assert "not a regular file" in refused(folder)
    path.rmdir()
    os.mkfifo(path)
    assert "not a regular file" in refused(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a regular file" in refused(folder)


def test_shards_may_be_links_to_files_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / SHARD).rename(tmp_path / "elsewhere.h5")
    (folder / SHARD).symlink_to(tmp_path / "elsewhere.h5")
    assert len(read_shard(folder, read_manifest(folder), "train", 0)) == 51


def with_entry(folder: Path, **changes: Any) -> None:
    """Change the manifest's entry of the first training shard."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["splits"]["train"][0].update(changes)
    (folder / MANIFEST).write_text(json.dumps(raw))


def stored_offsets(folder: Path) -> dict[str, int]:
    offsets: dict[str, int] = json.loads((folder / MANIFEST).read_text())["splits"]["train"][0]["offsets"]
    return offsets


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ({"index": -8}, "is -8, expected a whole number"),
        ({"index": 2**64}, "expected a whole number"),
        ({"index": 4992.0}, "is 4992.0, expected a whole number"),
        ({"index": True}, "is True, expected a whole number"),
        ({"more": 0}, "unknown more; expected images, labels, index"),
    ],
)
def test_offsets_of_a_wrong_type_are_refused(offsets: dict[str, Any], words: str, folder: Path) -> None:
    with_entry(folder, offsets=stored_offsets(folder) | offsets)
    with pytest.raises(DataError, match=r"damaged or edited: .*splits\.train\[0\]\.offsets") as caught:
        read_manifest(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "offset"), [("images", "labels"), ("labels", "images"), ("index", 10**18), ("images", -1)]
)
def test_wrong_offsets_are_refused(name: str, offset: str | int, folder: Path) -> None:
    """Of another array, outside the file, and one byte too early."""
    offsets = stored_offsets(folder)
    changed = offsets[offset] if isinstance(offset, str) else offset if offset > 0 else offsets[name] + offset
    with_entry(folder, offsets=offsets | {name: changed})
    assert (
        "hash of images, labels and index" if offset == -1 else "overlaps another array or lies outside"
    ) in refused(folder)


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
