"""dptrain.data.loading: training and evaluation refuse the same data sets as `data_prep verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_runs import assert_one_error, dptrain_here, train_here
from data_sets import image_data, run_data_prep
from mpi_runs import dptrain, own_mpi
from training_runs import configuration, flags, packed, run

from data_prep.pack import pack
from data_prep.verify import verify
from dptrain.data.loading import split_problems, tally
from dptrain.data.manifest import MANIFEST, read_manifest
from dptrain.data.shard import Samples, read_shard, write_shard


def change_shard(folder: Path, split: str, shard: int, change: Callable[[Samples], Samples]) -> None:
    """Change a shard and its entry, as a faulty packing program would: all hashes are correct."""
    manifest = read_manifest(folder)
    entries = list(manifest.splits[split])
    samples = change(read_shard(folder, manifest, split, shard))
    entries[shard] = write_shard(folder / entries[shard].file, samples, split, shard, manifest.shard_count)
    splits = {**manifest.splits, split: tuple(entries)}
    (folder / MANIFEST).write_text(replace(manifest, splits=splits).to_json())


def twice(folder: Path, split: str) -> None:
    """The first samples of shards 0 and 3 have the same number; no rank of two has both shards."""
    taken = read_shard(folder, read_manifest(folder), split, 3).index[0]
    change_shard(folder, split, 0, lambda one: replace(one, index=np.concatenate([[taken], one.index[1:]])))


def uneven(folder: Path, split: str) -> None:
    change_shard(folder, split, 0, lambda one: replace(one, labels=np.zeros_like(one.labels)))


def negative(folder: Path, split: str) -> None:
    change_shard(folder, split, 0, lambda one: replace(one, index=one.index - 1000))


def short(folder: Path, split: str) -> None:
    change_shard(folder, split, 0, lambda one: Samples(one.images[3:], one.labels[3:], one.index[3:]))


PROBLEMS = {
    "twice": (twice, "index has 1 numbers more than once"),
    "uneven": (uneven, "samples of class class-"),
    "negative": (negative, "index from -"),
    "short": (short, "samples, expected a difference of at most 1"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(configuration(packed(folder / "set"), folder / "run", max_steps=1))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
def test_train_and_eval_refuse_what_verify_refuses(problem: str, trained: Path, tmp_path: Path) -> None:
    break_it, words = PROBLEMS[problem]
    for split in ("train", "test"):
        data = packed(tmp_path / split)
        break_it(data, split)
        assert any(words in found for found in verify(data).problems)
        assert_one_error(train_here(data, tmp_path / "run"), words)
        assert not (tmp_path / "run").exists()
    assert_one_error(dptrain_here("eval", trained, tmp_path / "test", cwd=tmp_path), words)


@pytest.mark.mpi
@pytest.mark.once
def test_a_sample_that_occurs_twice_is_found_across_ranks_and_reported_once(tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    twice(data, "train")
    done = dptrain("train", *flags(data, tmp_path / "run"), cwd=tmp_path, mpi=own_mpi(), ranks=2, timeout=60)
    assert_one_error(done, "train index has 1 numbers more than once", ranks=True)


def test_a_problem_of_many_samples_and_classes_is_a_short_line(tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    manifest = replace(read_manifest(data), classes=tuple(f"\x1b{number}" for number in range(60_000)))
    labels = np.arange(50_000)
    images = np.zeros((50_000, 1, 1, 1), np.uint8)
    shards = [tally(Samples(images, of, labels), manifest) for of in (labels // 2, 0 * labels)]
    problems = split_problems(manifest, "train", shards)
    assert len(problems) == 2
    assert all(len(problem) < 200 and problem.isprintable() for problem in problems)
    assert "shards have 2 to 50000 samples of class \\x1b0, expected" in problems[0]
    assert "50000 numbers more than once, the first is 0" in problems[1]


@pytest.mark.slow
def test_data_written_by_pack_passes_all_checks(tmp_path: Path) -> None:
    pack(tmp_path / "set", image_data(), shards=7)
    assert json.loads(run_data_prep("verify", tmp_path / "set", "--json").stdout)["ok"]
