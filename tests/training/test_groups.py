"""dptrain.training.groups: which names address a parameter, and which of them counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import configuration, packed, run, session_and_state

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import read_checkpoint
from dptrain.config.train import TrainConfig
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Linear, ReLU
from dptrain.nn.network import Network
from dptrain.nn.tensor import Tensor
from dptrain.optim.optimizer import Parameter
from dptrain.training.groups import addresses, make_parameters

STEPS_PER_EPOCH = 10


class Stem(Conv2d):
    """A convolution whose weight is not trained, and whose tensors are in a group of their own."""

    def tensors(self) -> list[Tensor]:
        weight, bias = super().tensors()
        return [
            Tensor("weight", weight.shape, weight.init, group="stem", trainable=False),
            Tensor("bias", bias.shape, bias.init, group="stem"),
        ]


def network() -> Network:
    return Network([Stem(2), Conv2d(3), BatchNorm2d(), ReLU(), Conv2d(2), Flatten(), Linear(4)], (2, 8, 8))


def parameters(**tables: Any) -> dict[str, Parameter]:
    return {one.name: one for one in make_parameters(TrainConfig(**tables), network(), STEPS_PER_EPOCH)}


def test_each_parameter_has_its_names_the_most_specific_first() -> None:
    assert addresses(network()) == {
        "conv1.weight": ("conv1.weight", "conv1", "stem.weight", "stem", "first.weight", "first"),
        "conv1.bias": ("conv1.bias", "conv1", "stem.bias", "stem", "first.bias", "first", "bias"),
        "conv2.weight": ("conv2.weight", "conv2", "default"),
        "conv2.bias": ("conv2.bias", "conv2", "bias"),
        "norm1.weight": ("norm1.weight", "norm1", "norm.weight", "norm"),
        "norm1.bias": ("norm1.bias", "norm1", "norm.bias", "norm"),
        "conv3.weight": ("conv3.weight", "conv3", "default"),
        "conv3.bias": ("conv3.bias", "conv3", "bias"),
        "linear1.weight": ("linear1.weight", "linear1", "head.weight", "head"),
        "linear1.bias": ("linear1.bias", "linear1", "head.bias", "head", "bias"),
    }


def test_the_only_layer_is_the_head() -> None:
    found = addresses(Network([Flatten(), Linear(3)], (1, 2, 2)))
    assert found["linear1.weight"] == (
        *("linear1.weight", "linear1", "head.weight", "head"),
        *("first.weight", "first"),
    )


@pytest.mark.parametrize(
    ("table", "rates"),
    [
        ({}, {"conv1.bias": 1, "conv2.bias": 1, "norm1.bias": 1, "conv2.weight": 1, "linear1.bias": 1}),
        ({"bias": 2, "norm": 3}, {"conv1.bias": 2, "conv2.bias": 2, "norm1.bias": 3, "linear1.bias": 2}),
        ({"bias": 2, "head": 5, "first": 7}, {"conv1.bias": 7, "conv2.bias": 2, "linear1.bias": 5}),
        ({"head": 5, "head.bias": 6, "linear1.bias": 8}, {"linear1.bias": 8, "linear1.weight": 5}),
        ({"first": 5, "stem": 6}, {"conv1.bias": 6}),
        ({"first": 5, "stem": 6, "conv1": 7}, {"conv1.bias": 7}),
        ({"default": 4}, {"conv2.weight": 4, "conv3.weight": 4, "linear1.weight": 1, "conv2.bias": 1}),
    ],
)
def test_the_most_specific_name_in_a_table_counts(table: dict[str, float], rates: dict[str, float]) -> None:
    found = parameters(group_lr=table)
    assert {name: found[name].rate for name in rates} == rates


def test_a_factor_of_the_weight_decay_also_applies_where_none_is_by_default() -> None:
    before, after = parameters(), parameters(group_decay={"bias": 0.5, "head": 0, "norm.weight": 2})
    assert {name for name, one in before.items() if one.decay} == {"conv2.weight", "conv3.weight", "linear1.weight"}
    assert {name: one.decay for name, one in after.items() if one.decay} == {
        "conv1.bias": 0.5,
        "conv2.weight": 1,
        "conv2.bias": 0.5,
        "norm1.weight": 2,
        "conv3.weight": 1,
        "conv3.bias": 0.5,
    }


def test_a_tensor_that_is_not_trained_has_neither_a_learning_rate_nor_weight_decay() -> None:
    untrained = parameters(group_lr={"first": 2}, group_decay={"first": 2})["conv1.weight"]
    assert (untrained.rate, untrained.decay, untrained.frozen(0)) == (0, 0, True)


def test_a_group_with_epochs_follows_a_line_to_zero_and_is_then_frozen() -> None:
    """As the bias of the first layer in airbench94_muon.py: initial_lr * (1 - step / steps)."""
    options: dict[str, Any] = {"lr": 0.4, "warmup_steps": 0, "schedule": "cosine", "epochs": 8}
    found = parameters(group_lr={"bias": 2}, group_epochs={"first.bias": 3, "norm": 0}, **options)
    bias, norm = found["conv1.bias"], found["norm1.weight"]
    expected = [2 * 0.4 * max(0, 1 - step / 30) for step in range(80)]
    assert [bias.rate_at(0.1, step) for step in range(80)] == pytest.approx(expected)
    assert [bias.frozen(step) for step in range(80)] == [step >= 30 for step in range(80)]
    assert norm.frozen(0)
    assert found["conv2.bias"].schedule is None
    assert found["conv2.bias"].rate_at(0.1, 50) == 0.2


@pytest.mark.parametrize(("warmup", "epochs", "rates"), [(4, 1, [0.1, 0.2, 0.3, 0.4, 0.4]), (20, 0.3, [0.2, 0.4, 0.4])])
def test_the_line_begins_with_the_warm_up(warmup: int, epochs: float, rates: list[float]) -> None:
    bias = parameters(lr=0.4, warmup_steps=warmup, epochs=9, group_epochs={"first.bias": epochs})["conv1.bias"]
    assert [bias.rate_at(9.0, step) for step in range(len(rates))] == pytest.approx(rates)
    assert not bias.frozen(round(epochs * STEPS_PER_EPOCH) - 1)
    assert bias.rate_at(9.0, round(epochs * STEPS_PER_EPOCH)) == 0


def test_a_frozen_group_keeps_its_bits_and_the_others_are_trained(tmp_path: Path) -> None:
    """conv1 is frozen after the first of two epochs."""
    data = packed(tmp_path / "set")
    options: dict[str, Any] = {"model_options": {"widths": [3, 4]}, "group_epochs": {"conv1": 1}}
    run(configuration(data, tmp_path / "run", **options))
    steps = (7, 14)
    folder = RunFolder(tmp_path / "run")
    first, last = (read_checkpoint(folder.checkpoint_of(step)) for step in steps)
    before, after = (one.layouts["parameters"].views(one.state.parameters) for one in (first, last))
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("conv1."), name
    _, initial = session_and_state(configuration(data, tmp_path / "other", **options))
    assert not np.array_equal(first.layouts["parameters"].views(initial.parameters)["conv1.bias"], before["conv1.bias"])
