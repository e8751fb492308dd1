"""dptrain.training.microbatches: steps of an epoch, and microbatches that are too small for a layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from training_runs import configuration, packed, run, session_and_state

from dptrain.data.manifest import read_manifest
from dptrain.errors import UsageError
from dptrain.nn.graph import Part
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.global_pool import GlobalAvgPool2d
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.training.microbatches import check_microbatches, count_steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


@pytest.mark.parametrize(
    ("train", "shards", "batch_size"), [(101, 4, 16), (100, 4, 100), (100, 4, 4), (9, 8, 8), (7, 1, 3), (5, 5, 500)]
)
def test_steps_per_epoch_follow_from_the_largest_shard(
    train: int, shards: int, batch_size: int, tmp_path: Path
) -> None:
    manifest = read_manifest(packed(tmp_path / "set", train=train, test=8, shards=shards))
    assert count_steps(manifest, batch_size) == math.ceil(math.ceil(train / shards) / (batch_size // shards))


@pytest.mark.parametrize(
    ("batch_size", "nearest"), [(18, "16 and 20"), (3, "that are: 4"), (1, "that are: 4"), (7, "4 and 8")]
)
def test_an_error_about_the_batch_size_suggests_the_nearest(batch_size: int, nearest: str, data: Path) -> None:
    with pytest.raises(UsageError, match=f"--batch-size {batch_size} is not a multiple of the 4 shards.*{nearest}"):
        count_steps(read_manifest(data), batch_size)


def one_pixel(input_shape: tuple[int, int, int], classes: int, *, sync: bool = False) -> list[Part]:
    """A network that normalises one value of each sample and channel; shapes (C, 1, 1) without a mean over the map."""
    pool: list[Part] = [GlobalAvgPool2d()] if input_shape[1] > 1 else []
    return [*pool, BatchNorm2d(sync=sync), Flatten(), Linear(classes)]


# Images, flags that differ from 4 shards with batches of 8, and what the message says; None if the run ends.
CASES: dict[str, tuple[int, dict[str, Any], str | None]] = {
    "two in each microbatch": (32, {}, None),
    "one in the last": (33, {}, "in step 5 of an epoch a shard has 1."),
    "the last has one, but is not reached": (33, {"max_steps": 4}, None),
    "one in all": (32, {"batch_size": 4}, "in step 1 of an epoch a shard has 1."),
    "parts of one": (32, {"accumulate": 2}, "in step 1 of an epoch a shard has 1. .* or a smaller --accumulate"),
    "very many parts": (32, {"accumulate": 10**9}, "in step 1 of an epoch a shard has 1."),
    "one in each shard, synchronized": (32, {"batch_size": 4, "model_options": {"sync": True}}, None),
    "one in all shards, synchronized": (33, {"model_options": {"sync": True}}, "all shards together have 1."),
}


@pytest.mark.parametrize("case", CASES)
def test_a_microbatch_that_is_too_small_for_a_layer_is_refused_at_the_start(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check these runs end at a BatchNorm2d, at the latest in the last step of an epoch."""
    monkeypatch.setitem(ARCHITECTURES, "one-pixel", one_pixel)
    train, changes, message = CASES[case]
    data = packed(tmp_path / "set", train=train, shape=(2, 1, 1))
    options: dict[str, Any] = {"model": "one-pixel", "model_options": {}, "batch_size": 8, "epochs": 1} | changes
    config = configuration(data, tmp_path / "run", **options)
    if message is None:
        assert run(config)[0]["step"] == 4 + 4 * ("batch_size" in changes)
        return
    needed = r"layer norm1 \(BatchNorm2d\) needs at least 2 samples at a time; "
    with pytest.raises(UsageError, match=needed + ".*" + message):
        run(config)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_more_images_than_there_are_is_noted(data: Path, tmp_path: Path) -> None:
    for batch_size, notes in ((100, []), (104, ["--batch-size 104 is more than the 101 images of the training split"])):
        session, _ = session_and_state(configuration(data, tmp_path / "run", batch_size=batch_size, warmup_steps=0))
        assert session.notes == notes


def test_maps_of_more_than_one_pixel_need_one_sample(data: Path) -> None:
    norm = BatchNorm2d()
    norm.bind((3, 1, 2))
    check_microbatches([norm], read_manifest(data), batch_size=4, accumulate=1, steps=26)
    norm.bind((3, 1, 1))
    with pytest.raises(UsageError, match="step 1 "):
        check_microbatches([norm], read_manifest(data), batch_size=4, accumulate=1, steps=26)
