"""data_prep.spool: images on the disk, read back in any order."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import PEAK_MEMORY, folder_bytes, image_data
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from data_prep.pack import ImageData, LabelledImages, pack
from data_prep.spool import Spool, SpooledRows
from dptrain.errors import LimitError


@given(blocks=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
@examples(50)
def test_images_are_read_back_in_any_order(blocks: list[int], data: st.DataObject) -> None:
    images = np.random.default_rng(0).integers(0, 256, (sum(blocks), 2, 3, 5), dtype=np.uint8)
    spool = Spool(Path(), (2, 3, 5))
    for end, count in zip(np.cumsum(blocks), blocks, strict=True):
        spool.append(images[end - count : end])
    rows = np.array(data.draw(st.lists(st.integers(0, len(images) - 1)) if len(images) else st.just([])), np.intp)
    assert np.array_equal(spool[rows], images[rows])
    assert np.array_equal(spool[1:4], images[1:4])
    assert np.array_equal(SpooledRows(spool, rows)[:], images[rows])
    assert (spool.shape, spool.size, len(spool)) == (images.shape, images.size, len(images))


def test_a_data_set_packed_from_the_disk_has_the_same_bytes(tmp_path: Path) -> None:
    data = image_data()
    pack(tmp_path / "memory", data, shards=3)

    def on_disk(part: LabelledImages) -> LabelledImages:
        spool = Spool(tmp_path, part.images.shape[1:])
        spool.append(part.images)
        return LabelledImages(spool, part.labels)

    pack(tmp_path / "disk", replace(data, train=on_disk(data.train), test=on_disk(data.test)), shards=3)
    assert folder_bytes(tmp_path / "disk") == folder_bytes(tmp_path / "memory")


PACK_A_LARGE_SHARD = f"""
{PEAK_MEMORY}
import sys
from pathlib import Path
import numpy as np
from data_prep.pack import ImageData, LabelledImages, pack
from data_prep.spool import Spool
def part(count):
    spool = Spool(Path(sys.argv[1]), (1, 1024, 1024))
    for number in range(count):
        spool.append(np.full((1, 1, 1024, 1024), number, np.uint8))
    return LabelledImages(spool, np.zeros(count, np.int64))
pack(Path(sys.argv[1]) / "warm", ImageData("warm", ["one"], part(2), part(2)), shards=1)
before = peak()
pack(Path(sys.argv[1]) / "set", ImageData("large", ["one"], part(200), part(2)), shards=1)
print(peak() - before)
"""


@pytest.mark.slow
def test_a_shard_is_larger_than_the_memory_that_packing_needs(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PACK_A_LARGE_SHARD, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 60_000  # KiB, for a shard of 204,800
    assert (tmp_path / "set" / "train-000-of-001.h5").stat().st_size > 200 << 20


def test_the_layout_of_images_on_the_disk_need_not_be_stated(tmp_path: Path) -> None:
    spool = Spool(tmp_path, (5, 2, 2))
    spool.append(np.zeros((4, 5, 2, 2), np.uint8))
    part = LabelledImages(spool, np.zeros(4, np.int64))
    assert pack(tmp_path / "set", ImageData("five channels", ["one"], part, part), shards=2).image_shape == (5, 2, 2)


def test_the_file_is_on_the_disk_of_the_data_set_and_has_no_name(tmp_path: Path) -> None:
    out = tmp_path / "new" / "set"
    spool = Spool(out, (1, 2, 2))
    spool.append(np.zeros((3, 1, 2, 2), np.uint8))
    assert Path(f"/proc/self/fd/{spool._file.fileno()}").readlink().parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path, (1, 2, 2))
    wrong: Any
    for wrong in (np.zeros((3, 2, 2, 1), np.uint8), np.zeros((3, 1, 2, 2), np.int8)):
        with pytest.raises(ValueError, match="expected uint8"):
            spool.append(wrong)
    with pytest.raises(IndexError):
        spool[np.array([0])]


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    spool = Spool(tmp_path, (1, 2, 2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(LimitError, match=os.strerror(errno.EFBIG)):
            spool.append(np.zeros((3, 1, 2, 2), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(LimitError, match=f"{tmp_path}: images cannot be stored there for packing: Permission denied"):
        Spool(tmp_path, (1, 2, 2))
