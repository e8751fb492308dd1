"""Frozen parameters of a network: no gradient, no backward pass for them alone, the same bits elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Layer, Linear, Network, Pass, ReLU, Residual
from dptrain.nn.layer import Runner
from dptrain.nn.tensor import Tensor

SHAPE = (2, 6, 6)
NETWORKS: dict[str, Any] = {
    "chain": lambda: [Conv2d(3), ReLU(), Conv2d(4), ReLU(), Flatten(), Linear(3)],
    "norms": lambda: [Conv2d(3), BatchNorm2d(), ReLU(), Conv2d(4), BatchNorm2d(), ReLU(), Flatten(), Linear(3)],
    "residual": lambda: [Conv2d(3), Residual([Conv2d(3, 3, padding=1), BatchNorm2d()]), Flatten(), Linear(3)],
}


class Backward(Runner):
    """Collects the names of the layers whose backward pass is computed."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        self.names.add(layer.name)
        return super().backward(layer, dy, saved, call)


def gradient_of(network: Network, frozen: list[str]) -> tuple[Array, Array, set[str]]:
    """Gradient, statistics, and the layers that computed a backward pass."""
    generator, runner = np.random.default_rng(0), Backward()
    images = generator.normal(size=array_shape(SHAPE, 20)).astype(np.float32)
    gradient, statistics = (np.full(one.size, np.nan, np.float32) for one in (network.layout, network.buffer_layout))
    prepared = ready(network, network.initial(0)["parameters"])
    labels, workspace = generator.integers(0, 3, 20), Workspace()
    options: dict[str, Any] = {"statistics": statistics, "runner": runner, "frozen": frozen}
    network.loss_and_grad(prepared, images, labels, gradient, workspace, **options)
    return gradient, statistics, runner.names


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("frozen", [["conv1.weight"], ["conv1.weight", "conv1.bias"], ["linear1.bias", "conv2.bias"]])
def test_frozen_parameters_have_no_gradient_and_the_others_keep_their_bits(case: str, frozen: list[str]) -> None:
    network = Network(NETWORKS[case](), SHAPE)
    everything, found = gradient_of(network, []), gradient_of(network, frozen)
    expected, views = network.layout.views(everything[0]), network.layout.views(found[0])
    for name in network.layout.shapes:
        assert expected[name].any()
        np.testing.assert_array_equal(views[name], 0 if name in frozen else expected[name])
    np.testing.assert_array_equal(found[1], everything[1])
    np.testing.assert_array_equal(gradient_of(network, [])[0], everything[0])


class FixedWeight(Linear):
    """Its weight is not trained, but its backward pass writes a gradient."""

    def tensors(self) -> list[Tensor]:
        return [replace(one, trainable=one.name != "weight") for one in super().tensors()]


def test_parameters_that_are_not_trainable_have_no_gradient() -> None:
    network = Network([Conv2d(3), Flatten(), FixedWeight(3)], SHAPE)
    gradient = network.layout.views(gradient_of(network, [])[0])
    assert not gradient["linear1.weight"].any()
    assert gradient["linear1.bias"].any()
    assert gradient["conv1.weight"].any()


def test_what_only_frozen_parameters_need_is_not_computed() -> None:
    network = Network(NETWORKS["chain"](), SHAPE)
    assert gradient_of(network, ["conv1.weight"])[2] == {"conv1", "relu1", "conv2", "relu2", "flatten1", "linear1"}
    assert gradient_of(network, ["conv1.weight", "conv1.bias"])[2] == {"conv2", "relu2", "flatten1", "linear1"}
    convolutions = [f"conv{number}.{name}" for number in (1, 2) for name in ("weight", "bias")]
    assert gradient_of(network, convolutions)[2] == {"linear1"}


def test_a_network_can_be_frozen_as_a_whole() -> None:
    network = Network(NETWORKS["norms"](), SHAPE)
    gradient, statistics, computed = gradient_of(network, list(network.layout.shapes))
    assert not gradient.any()
    assert not computed
    np.testing.assert_array_equal(statistics, gradient_of(network, [])[1])
