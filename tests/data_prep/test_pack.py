"""data_prep.pack and data_prep.staging: how samples are distributed; a folder appears complete or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import folder_bytes, image_data
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from data_prep import pack as pack_module
from data_prep import staging
from data_prep.draw import deal, shuffled
from data_prep.pack import LabelledImages, channel_statistics, pack, pixel_histogram
from dptrain.data.manifest import REQUIRED, Manifest, read_manifest
from dptrain.data.shard import Samples, read_shard
from dptrain.errors import DataError, UsageError
from dptrain.system.signals import delayed_signals


def shards_of(folder: Path, split: str) -> list[Samples]:
    manifest = read_manifest(folder)
    return [read_shard(folder, manifest, split, shard) for shard in range(manifest.shard_count)]


def joined(shards: Sequence[Samples]) -> Samples:
    return Samples(*(np.concatenate([getattr(one, name) for one in shards]) for name in ("images", "labels", "index")))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("split", REQUIRED)
def test_every_sample_is_in_exactly_one_shard_with_its_image_and_label(split: str, tmp_path: Path) -> None:
    data = image_data()
    pack(tmp_path / "set", data, shards=4)
    samples = joined(shards_of(tmp_path / "set", split))
    source: LabelledImages = getattr(data, split)
    assert sorted(samples.index.tolist()) == list(range(len(source.labels)))
    assert np.array_equal(samples.images, source.images[samples.index])
    assert np.array_equal(samples.labels, source.labels[samples.index])


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    shards=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
@examples(150)
def test_dealing_balances_sizes_and_every_class_to_within_one(labels: list[int], shards: int, seed: int) -> None:
    array = np.array(labels, np.int64)
    dealt = deal(shuffled(len(array), seed, 0, 0), array, shards)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(labels)))
    sizes = [len(rows) for rows in dealt]
    assert max(sizes) - min(sizes) <= 1
    counts = np.array([np.bincount(array[rows], minlength=7) for rows in dealt])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_samples_are_shuffled_inside_each_shard(tmp_path: Path) -> None:
    pack(tmp_path / "set", image_data(train=400), shards=2)
    for shard in shards_of(tmp_path / "set", "train"):
        # Sorted or class by class would give few changes of class; 200 random labels of 5 change about 160 times.
        assert 130 < np.count_nonzero(np.diff(shard.labels)) < 190
        assert 70 < np.count_nonzero(np.diff(shard.index) > 0) < 130


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 of Salmon et al. 2011, the four words of a block."""
    mask = 2**64 - 1
    words, (low_key, high_key) = [counter, 0, 0, 0], key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [
            (second >> 64) ^ words[1] ^ low_key,
            second & mask,
            (first >> 64) ^ words[3] ^ high_key,
            first & mask,
        ]
        low_key, high_key = (low_key + 0x9E3779B97F4A7C15) & mask, (high_key + 0xBB67AE8584CAA73B) & mask
    return words


def test_order_follows_from_the_words_of_philox() -> None:
    # The first known answer of Random123's kat_vectors.
    assert philox(0, (0, 0)) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    seed, split, shard = 2**63 - 1, 1, 5
    # NumPy counts from one.
    words = [word for block in range(1, 6) for word in philox(block, (seed, (split << 32) + shard))]
    assert shuffled(20, seed, split, shard).tolist() == sorted(range(20), key=words.__getitem__)


def test_order_depends_on_seed_split_and_shard() -> None:
    assert len({tuple(shuffled(20, *key).tolist()) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}) == 4


@pytest.mark.slow
def test_same_input_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        pack(tmp_path / name, image_data(), shards=3, seed=seed)
        time.sleep(1.1 if name == "a" else 0)  # a time stored in seconds would show
    one, same, other = (folder_bytes(tmp_path / name) for name in "abc")
    assert one == same
    assert set(one) == set(other)
    assert all(one[name] != other[name] for name in one)


def test_mean_and_deviation_are_those_of_the_packed_training_pixels(tmp_path: Path) -> None:
    data = image_data(train=600)
    manifest = pack(tmp_path / "set", data, shards=4, limit=333)
    kept = joined(shards_of(tmp_path / "set", "train")).images.astype(np.float64) / 255
    assert len(kept) == 333
    np.testing.assert_allclose(manifest.mean, kept.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, kept.std(axis=(0, 2, 3)), rtol=1e-12)


def test_constant_channel_has_a_deviation_of_one() -> None:
    images = np.full((3, 2, 4, 4), 51, np.uint8)
    images[0, 1, 0, 0] = 52
    mean, std = channel_statistics(pixel_histogram(images))
    assert (mean[0], std[0]) == (0.2, 1.0)
    assert 0 < std[1] < 0.01


def test_limit_keeps_classes_equal_as_far_as_possible(tmp_path: Path) -> None:
    data = image_data(train=300, test=80, classes=3)
    labels = np.sort(np.minimum(np.arange(300) // 20, 2)).astype(np.int64)  # 20, 20 and 260 samples
    data = replace(data, train=replace(data.train, labels=labels))
    pack(tmp_path / "set", data, shards=4, limit=100)
    assert np.bincount(joined(shards_of(tmp_path / "set", "train")).labels).tolist() == [20, 20, 60]
    test = joined(shards_of(tmp_path / "set", "test")).labels
    assert len(test) == 20
    assert np.ptp(np.bincount(test)) <= 1


def test_limit_keeps_a_test_sample_for_every_shard_and_never_more_than_exist(tmp_path: Path) -> None:
    assert pack(tmp_path / "a", image_data(), shards=8, limit=10).samples("test") == 8
    whole = pack(tmp_path / "b", image_data(), shards=8, limit=10**9)
    assert (whole.samples("train"), whole.samples("test")) == (101, 37)


def test_limited_sets_are_nested(tmp_path: Path) -> None:
    indices = []
    for limit in (20, 50):
        pack(tmp_path / str(limit), image_data(), shards=2, limit=limit)
        indices.append(set(joined(shards_of(tmp_path / str(limit), "train")).index.tolist()))
    assert indices[0] < indices[1]


@pytest.mark.parametrize("shards", [0, 38])
def test_shard_without_a_sample_is_a_usage_error(shards: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--shards {shards}: .* choose from 1 to"):
        pack(tmp_path / "set", image_data(), shards=shards)
    assert leftovers(tmp_path) == []


def test_one_sample_per_shard_is_possible(tmp_path: Path) -> None:
    pack(tmp_path / "set", image_data(train=37), shards=37)
    assert [len(shard) for shard in shards_of(tmp_path / "set", "test")] == [1] * 37


# The folder: complete or not at all.


def test_existing_data_set_is_kept_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(out, image_data(), shards=4)
    before = folder_bytes(out)
    with pytest.raises(DataError, match="--force"):
        pack(out, image_data(seed=1), shards=2)
    assert folder_bytes(out) == before
    pack(out, image_data(seed=1), shards=2, force=True)
    assert read_manifest(out).shard_count == 2
    assert len(folder_bytes(out)) == 5
    assert leftovers(tmp_path) == ["set"]


def test_damaged_data_set_can_be_replaced(tmp_path: Path) -> None:
    pack(tmp_path / "set", image_data(), shards=2)
    (tmp_path / "set" / "manifest.json").write_text("{")
    pack(tmp_path / "set", image_data(), shards=2, force=True)
    assert read_manifest(tmp_path / "set").shard_count == 2


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    out = tmp_path / "set"
    pack(out, image_data(), shards=2)
    (out / "notes.txt").write_text("mine")
    before = folder_bytes(out)
    with pytest.raises(DataError, match=r"not a data set .*notes\.txt"):
        pack(out, image_data(), shards=2, force=True)
    assert folder_bytes(out) == before


@pytest.mark.parametrize("manifest", ['{"name": "web app"}', "[]", None])
def test_folder_with_another_or_no_manifest_is_never_touched(manifest: str | None, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "train-000-of-001.h5").write_text("mine")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    before = folder_bytes(out)
    with pytest.raises(DataError, match=r"not a data set|no such folder"):
        pack(out, image_data(), force=True)
    assert folder_bytes(out) == before


def test_file_in_the_way_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DataError, match="is not a folder"):
        pack(tmp_path / "set", image_data(), force=True)
    assert (tmp_path / "set").read_text() == "mine"


def test_empty_folder_and_missing_parents_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "empty", image_data())
    pack(tmp_path / "a" / "b" / "set", image_data())
    assert read_manifest(tmp_path / "empty").sha256 == read_manifest(tmp_path / "a" / "b" / "set").sha256


def test_link_to_another_disk_keeps_pointing_there(tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "big-disk")
    pack(tmp_path / "set", image_data())
    assert (tmp_path / "set").is_symlink()
    assert (tmp_path / "big-disk" / "manifest.json").exists()


def test_two_runs_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    with staging.staged(tmp_path / "set", force=False), pytest.raises(DataError, match="another process"):
        pack(tmp_path / "set", image_data())
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_does_not_change_the_folder(
    error: BaseException, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    if force:
        pack(out, image_data(), shards=2)
    before = folder_bytes(out) if force else None

    def write_shard(path: Path, samples: Samples, split: str, shard: int, shards: int) -> None:
        path.write_bytes(b"half")
        if shard == 1:
            raise error

    monkeypatch.setattr(pack_module, "write_shard", write_shard)
    with pytest.raises(DataError if isinstance(error, OSError) else type(error)) as caught:
        pack(out, image_data(seed=1), force=force)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert leftovers(tmp_path) == (["set"] if force else [])
    assert (folder_bytes(out) if force else None) == before


def test_path_that_cannot_be_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is not a folder"):
        pack(tmp_path / "file" / "set", image_data())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_during_the_block_is_delayed_to_its_end(number: int) -> None:
    caught: list[str] = []
    before = signal.signal(number, lambda *_arguments: caught.append("handler"))
    try:
        with delayed_signals():
            signal.raise_signal(number)
            caught.append("end of block")
        assert caught == ["end of block", "handler"]
        signal.raise_signal(number)
        assert caught[2:] == ["handler"]
    finally:
        signal.signal(number, before)


SLOW_PACKING = """
import sys, time
sys.path[:0] = [{tests!r}]
from pathlib import Path
from data_sets import image_data
from data_prep import pack
original = pack.write_shard
def slow(path, *rest):
    original(path, *rest)
    print(path.name, flush=True)
    time.sleep(60)
pack.write_shard = slow
pack.pack(Path({out!r}), image_data(), force=True)
"""


@pytest.mark.slow
def test_process_killed_while_packing_leaves_nothing_that_is_accepted_as_a_data_set(tmp_path: Path) -> None:
    out = tmp_path / "set"
    program = SLOW_PACKING.format(tests=str(Path(__file__).parents[1]), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "train-000-of-008.h5\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [".partial"]
    with pytest.raises(DataError, match="not a data set"):
        read_manifest(out)
    manifest: Manifest = pack(out, image_data())
    assert read_manifest(out) == manifest
    assert ".partial" not in leftovers(out)
