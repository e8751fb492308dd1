"""Every recipe gives one params_sha256 from any number of ranks, and resumed.

Quick, on ranks that are threads, with small networks and images; and with the real networks under mpirun:

    python -m pytest -m long tests/training/test_recipes_same_bits.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import assert_one_error, dptrain_here
from mpi_runs import dptrain
from thread_ranks import on_ranks
from training_runs import packed

from data_prep.__main__ import main as data_prep
from dptrain.config.files import merged
from dptrain.config.recipes import read_recipe, recipe_names
from dptrain.config.train import TrainConfig
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.training.loop import train

STEPS = 20
SMALL: dict[str, dict[str, Any]] = {
    "convnet": {"widths": [3, 5]},
    "resnet20": {"width": 2, "blocks": 1},
    "resnet9": {"width": 1},
    "vgg11": {"width": 1},
    "airbench": {"widths": [2, 3, 3]},
}

each_recipe = pytest.mark.parametrize("name", recipe_names())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """104 images in 4 shards: 7 steps an epoch, of 16 images, the last of 8."""
    return packed(tmp_path_factory.mktemp("small") / "set", train=104, shape=(3, 12, 13))


def small_run(name: str, data: Path, run_dir: Path, steps: int = STEPS, threads: int = 1) -> TrainConfig:
    """A recipe for a small network, and for as many epochs as the steps need."""
    recipe = read_recipe(name)
    model = recipe["model"]
    options = {"model_options": recipe.get("model_options", {}) | SMALL[model]}
    length = {"epochs": 3, "max_steps": steps, "batch_size": 16, "threads": threads}
    return merged(recipe, {"data": str(data), "run_dir": str(run_dir)} | options | length)


@pytest.mark.slow
@each_recipe
def test_a_recipe_gives_the_same_bits_on_ranks_and_resumed(name: str, small: Path, tmp_path: Path) -> None:
    """The resumed run stops after step 11, in the middle of the second epoch."""

    def end(folder: str, ranks: int, steps: int = STEPS, threads: int = 1) -> tuple[str, float, float | None]:
        config = small_run(name, small, tmp_path / folder, steps, threads)
        finished = on_ranks(ranks, lambda rank: train(config, rank))[0]
        assert finished is not None
        return finished.params_sha256, finished.test_loss, finished.tta_accuracy

    expected = end("alone", 1)
    assert end("two", 2, threads=2) == expected
    assert end("three", 3) == expected
    assert end("resumed", 3, steps=11) != expected
    assert end("resumed", 2) == expected


@pytest.mark.slow
@each_recipe
def test_a_recipe_starts_with_its_own_network(name: str, small_cifar: Path, tmp_path: Path) -> None:
    """One step of 4 images of CIFAR's shape."""
    words = ["--recipe", name, "--batch-size", "4", "--max-steps", "1", "--run-dir", "run", "--threads", "1"]
    done = dptrain_here("train", small_cifar, *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 1


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("cifar") / "set", train=64, test=4, shards=2, shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("name", "shape", "shards", "error"),
    [
        ("convnet", (3, 2, 3), 4, "smaller than the kernel"),
        ("convnet-30", (3, 4, 4), 4, "--crop reflect needs images of at least 5 x 5 pixels, these are 4 x 4"),
        ("resnet9", (3, 9, 7), 4, "--cutout 8 needs images of at least 9 x 9 pixels, these are 9 x 7"),
        ("airbench93", (3, 8, 9), 8, "airbench needs images of at least 9 x 9 pixels, these are 8 x 9"),
        ("resnet20", (3, 8, 8), 3, "--batch-size 128 is not a multiple of the 3 shards"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data_set_is_one_error(
    name: str, shape: tuple[int, int, int], shards: int, error: str, tmp_path: Path
) -> None:
    data = packed(tmp_path / "set", shape=shape, shards=shards)
    done = dptrain_here("train", data, "--recipe", name, "--run-dir", "run", cwd=tmp_path)
    assert_one_error(done, error, status=2)
    assert not (tmp_path / "run").exists()


def test_every_network_of_a_recipe_is_made_small() -> None:
    assert {read_recipe(name)["model"] for name in recipe_names()} == SMALL.keys()
    assert ARCHITECTURES.keys() - SMALL.keys() == {"linear"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of CIFAR's shape in 8 shards."""
    folder = tmp_path_factory.mktemp("shapes") / "set"
    assert data_prep(["shapes", str(folder), "--train", "2000", "--test", "200"]) == 0
    return folder


@pytest.mark.long
@pytest.mark.mpi
@each_recipe
def test_a_recipe_gives_the_same_bits_under_mpirun(name: str, shapes: Path, tmp_path: Path) -> None:
    def end(folder: str, ranks: int, steps: int = STEPS) -> str:
        words: list[str | Path] = ["train", shapes, "--recipe", name, "--run-dir", tmp_path / folder, "--json"]
        words += ["--batch-size", "128", "--max-steps", str(steps), "--tta", "none"]
        done = dptrain(*words, cwd=tmp_path, mpi="openmpi" if ranks > 1 else None, ranks=ranks, timeout=600)
        assert done.returncode == 0, done.stderr
        found: str = json.loads(done.stdout.splitlines()[-1])["params_sha256"]
        return found

    expected = end("alone", 1)
    assert end("two", 2) == expected
    assert end("three", 3) == expected
    assert end("resumed", 2, steps=9) != expected
    assert end("resumed", 3) == expected
