"""data_prep.verify: a sound data set passes, and each kind of damage is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import image_data

from data_prep.pack import pack
from data_prep.verify import Verification, info, verify
from dptrain.data.manifest import MANIFEST, Manifest, read_manifest
from dptrain.data.shard import Samples, read_shard, write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(tmp_path / "set", image_data(), shards=4)
    return tmp_path / "set"


def rewrite_shard(folder: Path, split: str, shard: int, change: Callable[[Samples], Samples]) -> None:
    """Change a shard and its entry, as a faulty packing program would: all hashes are correct."""
    manifest = read_manifest(folder)
    samples = change(read_shard(folder, manifest, split, shard))
    entries = list(manifest.splits[split])
    entries[shard] = write_shard(folder / entries[shard].file, samples, split, shard, manifest.shard_count)
    write_manifest(folder, replace(manifest, splits={**manifest.splits, split: tuple(entries)}))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.to_json())


def only_problem(result: Verification) -> str:
    assert len(result.problems) == 1, result.problems
    return result.problems[0]


def test_sound_data_set_has_no_problems(folder: Path) -> None:
    result = verify(folder)
    assert result.problems == []
    data = image_data()
    assert result.class_counts["train"] == np.bincount(data.train.labels).tolist()
    assert result.manifest_sha256 == read_manifest(folder).sha256


def test_limited_data_set_is_sound(tmp_path: Path) -> None:
    pack(tmp_path / "set", image_data(), shards=4, limit=20)
    assert verify(tmp_path / "set").problems == []


def test_every_bad_shard_is_reported(folder: Path) -> None:
    (folder / "train-001-of-004.h5").unlink()
    path = folder / "train-002-of-004.h5"
    path.write_bytes(path.read_bytes()[:-7])
    path = folder / "test-003-of-004.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    problems = verify(folder).problems
    assert len(problems) == 3
    for problem, words in zip(
        problems,
        (
            ("train-001-of-004.h5", "No such file"),
            ("train-002-of-004.h5", "cut short"),
            ("test-003-of-004.h5", "altered"),
        ),
        strict=True,
    ):
        assert all(word in problem for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no manifest.json; give the folder of a packed data set"),
        ('{"format": "dptrain-dataset", "version": 99}', "version 99"),
    ],
)
def test_manifest_that_is_missing_or_of_another_version_is_the_problem(
    text: str | None, words: str, folder: Path
) -> None:
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text)
    assert words in only_problem(verify(folder))


def test_only_a_new_or_empty_folder_gets_the_advice_to_pack_into_it(tmp_path: Path) -> None:
    """Found in the field: the advice for a run folder was to pack a data set into it."""
    for folder in (tmp_path, tmp_path / "new"):
        assert f"pack one first, for example: dptrain prep cifar10 {folder}" in only_problem(verify(folder))
    (tmp_path / "metrics.jsonl").touch()
    assert only_problem(verify(tmp_path)).endswith("no manifest.json; give the folder of a packed data set")


def test_sample_that_occurs_twice_is_found_across_shards(folder: Path) -> None:
    manifest = read_manifest(folder)
    taken = read_shard(folder, manifest, "test", 1).index[0]

    def copy_index(samples: Samples) -> Samples:
        return replace(samples, index=np.concatenate([[taken], samples.index[1:]]))

    rewrite_shard(folder, "test", 0, copy_index)
    assert f"1 numbers more than once, the first is {taken}" in only_problem(verify(folder))


def test_negative_index_is_found(folder: Path) -> None:
    rewrite_shard(folder, "test", 0, lambda samples: replace(samples, index=samples.index - 1000))
    assert "index from -" in verify(folder).problems[0]


def test_classes_that_are_not_balanced_are_found(folder: Path) -> None:
    rewrite_shard(folder, "test", 2, lambda samples: replace(samples, labels=np.zeros_like(samples.labels)))
    assert any("class class-0, expected a difference of at most 1" in problem for problem in verify(folder).problems)


def test_shards_of_unequal_size_are_found(folder: Path) -> None:
    def drop(samples: Samples) -> Samples:
        return Samples(samples.images[2:], samples.labels[2:], samples.index[2:])

    rewrite_shard(folder, "test", 3, drop)
    assert "test shards have 7 to 10 samples" in verify(folder).problems[0]


def test_pixels_that_do_not_have_the_stated_mean_are_found(folder: Path) -> None:
    def brighten(samples: Samples) -> Samples:
        images = samples.images.copy()
        images[0, 1, 0, 0] ^= 1
        return replace(samples, images=images)

    rewrite_shard(folder, "train", 0, brighten)
    assert "mean and std of the channels are" in only_problem(verify(folder))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_edited_statistics_are_found(name: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    values: tuple[float, ...] = getattr(manifest, name)
    edited: dict[str, Any] = {name: (values[0] + 1e-6, *values[1:])}
    write_manifest(folder, replace(manifest, **edited))
    assert "mean and std of the channels are" in only_problem(verify(folder))


def test_info_has_the_manifest_as_plain_values(folder: Path) -> None:
    facts: dict[str, Any] = info(folder)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["samples"] == {"train": 101, "test": 37}
    assert facts["shards"] == 4
    assert facts["image_shape"] == [2, 5, 7]
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.glob("*.h5"))
    assert facts["manifest_sha256"] == read_manifest(folder).sha256
