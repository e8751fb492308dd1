"""dptrain.config.recipes: every recipe is complete and true, and flags and files override it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_runs import assert_one_error, dptrain_here
from training_runs import packed

from dptrain.config.files import merged, to_toml
from dptrain.config.recipes import about, read_recipe, recipe_list, recipe_name, recipe_names, used_with
from dptrain.config.train import KEYS, TrainConfig
from dptrain.errors import UsageError
from dptrain.system.keys import Scope
from dptrain.training.architecture import build_network
from dptrain.training.session import plan_schedule
from dptrain.training.update import make_update

CIFAR_SAMPLES = 50_000
ALL_DECAY = {"norm": 1, "bias": 1}  # weight decay for all parameters, as in PyTorch and Caffe

each_recipe = pytest.mark.parametrize("name", recipe_names())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


@each_recipe
def test_a_recipe_decides_results_only_and_describes_itself(name: str) -> None:
    values, known = read_recipe(name), about(name)
    others = {key for key in values if KEYS[key].metadata["scope"] not in (Scope.RUN, Scope.BITS)}
    assert others <= {"tta"}
    assert not {"data", "seed", "run_dir"} & values.keys()
    assert {"model", "epochs", "batch_size", "optimizer", "lr", "schedule"} <= values.keys()
    facts = {"summary", "source", "parameters", "flop-per-image", "petaflop", "accuracy", "minutes", "cpu"}
    assert known.keys() - {"differences"} == facts
    merged(values)


@each_recipe
def test_parameters_and_operations_of_a_recipe_are_those_of_its_network(name: str) -> None:
    config, known = merged(read_recipe(name)), about(name)
    network = build_network(config.model, config.model_options, (3, 32, 32), 10)
    assert known["parameters"] == network.layout.size
    flop = 3 * sum(layer.forward_flops() for layer in network.layers)
    assert known["flop-per-image"] == flop
    assert known["petaflop"] == pytest.approx(flop * CIFAR_SAMPLES * config.epochs / 1e15, rel=0.01)


def test_the_recipe_convnet_is_the_default() -> None:
    assert merged(read_recipe("convnet")) == TrainConfig()


def test_the_list_has_every_recipe_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("list", "help"):
        done = dptrain_here("train", "--recipe", word, cwd=Path())
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == recipe_list() + "\n"
    for name in recipe_names():
        assert f"  {name} " in recipe_list()
        assert about(name)["summary"] in recipe_list()
    assert max(map(len, recipe_list().splitlines())) <= 120


def test_an_unknown_recipe_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    done = dptrain_here("train", "--recipe", "convnet-31", cwd=tmp_path)
    assert_one_error(done, "there is no recipe 'convnet-31'; did you mean 'convnet-30'?", status=2)
    with pytest.raises(UsageError, match=r"there is no recipe 'zzz'; known: .*convnet, convnet-30"):
        recipe_name("zzz")


def test_a_file_overrides_a_recipe_and_flags_override_both(data: Path, tmp_path: Path) -> None:
    """The merged configuration is saved, and resumes the run without the recipe."""
    (tmp_path / "my.toml").write_text('epochs = 3\nbatch-size = 16\ncrop = "none"\nlog-every = 1\n')
    words: list[str | Path] = ["train", data, "--recipe", "convnet-30", "--config", "my.toml", "--max-steps", "2"]
    done = dptrain_here(*words, "--epochs", "4", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (saved["epochs"], saved["batch-size"], saved["crop"], saved["flip"]) == (4, 16, "none", True)
    saved_file: list[str | Path] = ["train", "--config", tmp_path / "run" / "config.toml", "--max-steps", "4"]
    done = dptrain_here(*saved_file, "--run-dir", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 4
    assert "step 2)" in done.stdout


@pytest.mark.parametrize(
    ("later", "kept", "dropped"),
    [
        ({}, {"model_options", "lr", "momentum", "schedule_options", "flip"}, set()),
        ({"lr": 1.0, "optimizer": "sgd"}, {"model_options", "lr", "momentum"}, set()),
        ({"model": "linear"}, {"momentum", "lr"}, {"model_options"}),
        ({"optimizer": "adamw"}, {"model_options", "flip"}, {"lr", "momentum"}),
        ({"schedule": "cosine"}, {"lr", "momentum"}, {"schedule_options"}),
    ],
)
def test_values_that_suit_only_a_replaced_value_are_not_used(
    later: dict[str, Any], kept: set[str], dropped: set[str]
) -> None:
    recipe: dict[str, Any] = {
        "model": "convnet",
        "model_options": {"widths": [3]},
        "optimizer": "sgd",
        "lr": 0.4,
        "momentum": 0.8,
        "schedule": "step",
        "schedule_options": {"milestones": [3]},
        "flip": True,
    }
    used = used_with(recipe, later)
    assert kept <= used.keys()
    assert not dropped & used.keys()
    config = merged(used, later)
    assert merged(saved_form(config), {}) == config


# The values of each recipe's source, as it states them, and learning rates after some epochs.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[float, float]]] = {
    # He et al. 2015, section 4.2. Its 32,000, 48,000 and 64,000 steps are 81.8, 122.8 and 163.7 epochs.
    "resnet20": (
        {"batch_size": 128, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0001, "group_decay": ALL_DECAY}
        | {"epochs": 164, "crop": "zero", "crop_pixels": 4, "flip": True, "cutout": 0, "average": "none"},
        {0: 0.1, 81: 0.1, 83: 0.01, 122: 0.01, 124: 0.001, 163: 0.001},
    ),
    # dawn.py of cifar10-fast: PiecewiseLinear([0, 5, 24], [0, 0.4, 0]).
    "resnet9": (
        {"batch_size": 512, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005}
        | {"epochs": 24, "crop": "reflect", "crop_pixels": 4, "flip": True, "cutout": 8},
        {0: 0, 2.5: 0.2, 5: 0.4, 14.5: 0.2, 24: 0},
    ),
    # main.py of pytorch-cifar, with fewer epochs.
    "vgg11-small": (
        {"batch_size": 128, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0005, "group_decay": ALL_DECAY}
        | {"crop": "zero", "crop_pixels": 4, "flip": True, "cutout": 0},
        {15: 0.05, 30: 0},
    ),
    # lib_airbench93.py: rates and decay for sums over 1,024 images, the rate without the factor 1 + 1 / (1 - 0.85).
    "airbench93": (
        {"batch_size": 1024, "momentum": 0.85, "nesterov": True, "weight_decay": 0.0153 / 11.5, "label_smoothing": 0.2}
        | {
            "group_lr": {"norm": 64},
            "group_decay": {"first.bias": 1, "norm": 1 / 64},
            "group_epochs": {"first.bias": 3},
        }
        | {"crop": "reflect", "crop_pixels": 2, "alternating_flip": True, "tta": "mirror-translate"},
        {share * 11: 11.5 / (1 + 1 / 0.15) * part for share, part in {0: 0.2, 0.23: 1, 0.615: 0.535}.items()},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_values_of_its_source(name: str) -> None:
    config = merged(read_recipe(name))
    values, rates = PUBLISHED[name]
    for key, value in values.items():
        assert getattr(config, key) == (pytest.approx(value) if isinstance(value, float) else value), key
    steps_per_epoch = -(-CIFAR_SAMPLES // config.batch_size)
    schedule = plan_schedule(config, steps_per_epoch)
    last = config.epochs * steps_per_epoch - 1
    for epoch, rate in rates.items():
        assert schedule(min(last, round(epoch * steps_per_epoch))) == pytest.approx(rate, rel=0.02, abs=0.002), epoch


@each_recipe
def test_any_flag_with_choices_overrides_a_recipe(name: str) -> None:
    recipe = read_recipe(name)
    network = build_network(recipe["model"], recipe.get("model_options", {}), (3, 32, 32), 10)
    overridden = [{key: choice} for key, one in KEYS.items() for choice in one.metadata.get("choices", ())]
    for flags in overridden:
        make_update(merged(used_with(recipe, flags), flags), network, steps_per_epoch=5)
    assert {"optimizer": "adamw"} in overridden
    assert {"average": "ema"} in overridden


def saved_form(config: TrainConfig) -> dict[str, Any]:
    """A configuration as its saved form has it."""
    return {name.replace("-", "_"): value for name, value in tomllib.loads(to_toml(config)).items()}


def test_another_optimizer_has_its_own_learning_rate() -> None:
    flags = {"optimizer": "adamw"}
    assert merged(used_with(read_recipe("convnet-30"), flags), flags).lr == 0.001
