"""dptrain.config.values: the configuration from values of a program."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from dptrain.config.files import parse_toml, to_toml
from dptrain.config.train import TrainConfig
from dptrain.config.values import from_python
from dptrain.errors import UsageError


def config(**values: Any) -> TrainConfig:
    return from_python({"data": "data", **values}, {})


def refused(**values: Any) -> str:
    with pytest.raises(UsageError) as caught:
        config(**values)
    return str(caught.value)


def test_classes_may_be_numbers() -> None:
    assert config(class_weights={0: 2.0, np.int64(3): np.float32(0.5), "cat": 4}).class_weights == {
        "0": 2.0,
        "3": 0.5,
        "cat": 4,
    }
    assert "found the key True, expected text" in refused(class_weights={True: 2.0})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"group_lr": {1: 2}}, "--group-lr: found the key 1, expected text"),
        ({"optimizer_options": {1: 2.0}}, "--optimizer-options: found the key 1, expected text"),
        ({"model_options": {"a": [{"b": {2: 3}}]}}, "--model-options: found the key 2, expected text"),
        ({"model_options": {"a": None}}, "--model-options: found None, expected text, numbers"),
        ({"model_options": {"a": [int]}}, "--model-options: found <class 'int'>, expected text, numbers"),
    ],
)
def test_what_cannot_be_saved_in_a_table_is_refused(values: dict[str, Any], text: str) -> None:
    assert text in refused(**values)


def test_arrays_in_tables_are_lists() -> None:
    found = config(model_options={"widths": np.array([8, 16]), "depth": (np.int32(2),)})
    assert found.model_options == {"widths": [8, 16], "depth": [2]}
    assert parse_toml(to_toml(found), "saved") == asdict(found)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"class_weights": [1, 2]}, "expected a dict: weights by class name or number (others: 1), such as {'cat'"),
        ({"model_options": "widths=[8]"}, "expected a dict: arguments of the model, such as {'widths': [32, 64]}"),
        ({"resume": True}, "--resume is True, expected a path: checkpoint or run folder to resume (auto: the newest; "),
        ({"freeze": True}, "--freeze is True, expected text: layers and tensors"),
        ({"init_from": None}, "expected a path: begin with the tensors of a checkpoint, run folder, .safetensors or "),
        ({"init_from": None}, "; for the default, leave it out"),
        ({"schedule": len}, "expected one of 'constant', 'step', "),
        ({"flip": "yes"}, "--flip is 'yes', expected True or False: mirror half of the images"),
        ({"seed": np.arange(2)}, "--seed is [0, 1], expected a whole number: seed of"),
        ({"recipe": 3}, "--recipe is 3, expected the name of a recipe"),
        ({"augment": 3}, "--augment is 3, expected text, such as 'zero'"),
    ],
)
def test_values_of_another_type_are_explained_in_words_of_python(values: dict[str, Any], text: str) -> None:
    assert text in refused(**values)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_configuration_of_a_run_can_be_given_again(optimizer: str) -> None:
    whole = asdict(config(optimizer=optimizer, crop="zero"))
    assert asdict(config(**whole)) == whole
    assert asdict(config(**{**whole, "epochs": 3})) == {**whole, "epochs": 3}


def test_a_value_that_is_not_the_default_and_has_no_effect_is_refused() -> None:
    assert "--step-epochs has no effect without --schedule step" in refused(step_epochs=3)
    assert "--momentum is not an option of --optimizer adamw" in refused(optimizer="adamw", momentum=0.5)


def test_values_win_over_a_file_and_a_file_over_a_recipe() -> None:
    saved = {"crop": "none", "flip": False, "epochs": 7, "lr": 0.25}
    found = from_python({"data": "data", "augment": "zero", "lr": 0.5, "recipe": "resnet20"}, saved)
    assert (found.crop, found.flip, found.epochs, found.lr, found.model) == ("zero", True, 7, 0.5, "resnet20")
