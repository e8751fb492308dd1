"""The transforms of augmentation give one params_sha256 from any number of ranks, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import configuration, packed

from dptrain.training.loop import train

TRANSFORMS: list[dict[str, Any]] = [
    {"flip": True, "crop": "reflect", "crop_pixels": 3},
    {"flip": True, "alternating_flip": True},
    {"resized_crop": 0.25},
    {"brightness": 0.4},
    {"contrast": 0.4},
    {"cutout": 4, "cutout_fill": "0"},
]
EVERY = {name: value for keys in TRANSFORMS for name, value in keys.items()}
STEPS = 10  # of 7 an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set", shape=(3, 8, 9))


def end(data: Path, folder: Path, ranks: int, steps: int = STEPS, threads: int = 1, **keys: Any) -> str:
    config = configuration(data, folder, max_steps=steps, threads=threads, **keys)
    finished = on_ranks(ranks, lambda rank: train(config, rank))[0]
    assert finished is not None
    return finished.params_sha256


@quick_first("keys", [TRANSFORMS[0] | TRANSFORMS[-1], EVERY], ids=["some", "all"])
def test_transforms_give_the_same_bits_on_ranks_and_resumed(keys: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """The resumed run stops after step 8, in the second epoch."""
    expected = end(data, tmp_path / "alone", 1, **keys)
    assert end(data, tmp_path / "two", 2, threads=2, **keys) == expected
    assert end(data, tmp_path / "three", 3, **keys) == expected
    assert end(data, tmp_path / "resumed", 3, steps=8, **keys) != expected
    assert end(data, tmp_path / "resumed", 2, **keys) == expected


@pytest.mark.slow
def test_every_transform_changes_the_bits(data: Path, tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{}, *TRANSFORMS, EVERY, EVERY | {"seed": 1}]
    hashes = {end(data, tmp_path / str(number), 1, steps=2, **keys) for number, keys in enumerate(runs)}
    assert len(hashes) == len(runs)
