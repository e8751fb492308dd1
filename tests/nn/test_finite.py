"""dptrain.nn.finite: the first place in a network where numbers are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.finite import first_not_finite, not_finite
from dptrain.nn.graph import Residual
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.network import Network
from dptrain.nn.zoo import convnet

SHAPE = (2, 8, 8)
HUGE = np.float32(3e38)  # finite, but almost every operation overflows


def small_convnet(fused: bool = True) -> Network:
    return Network(convnet(SHAPE, 3, widths=[4, 5]), SHAPE, fused=fused)


def first_in(network: Network, parameters: Array, samples: int = 3) -> str:
    """The result for a microbatch of positive images."""
    generator = np.random.default_rng(0)
    channels, *extents = network.input_shape
    images = generator.uniform(0.5, 2, (*extents, samples, channels)).astype(np.float32)
    labels = np.arange(samples) % network.classes
    return first_not_finite(network, {"parameters": parameters, "buffers": np.empty(0)}, images, labels, Workspace())


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4, 5)])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_one_value_that_is_not_finite_is_found_among_others(bad: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert not_finite(values) == ""
    values.flat[-1] = np.float32(bad)
    assert not_finite(values) == bad


@pytest.mark.parametrize("samples", [0, 3, 21])
@pytest.mark.parametrize("fused", [True, False])
def test_a_finite_microbatch_gives_an_empty_text(fused: bool, samples: int) -> None:
    network = small_convnet(fused)
    assert first_in(network, network.initial(0)["parameters"], samples) == ""


@given(
    st.sampled_from(list(small_convnet().layout.shapes)),
    st.integers(0, 1000),
    st.sampled_from(["nan", "inf", "-inf"]),
    st.booleans(),
)
@examples(40)
def test_a_parameter_that_is_not_finite_is_reported_before_its_consequences(
    name: str, position: int, bad: str, fused: bool
) -> None:
    network = small_convnet(fused)
    parameters = network.initial(0)["parameters"]
    view = network.layout.views(parameters)[name]
    view.flat[position % view.size] = np.float32(bad)
    assert first_in(network, parameters) == f"the parameter {name} holds {bad}"


@pytest.mark.parametrize("samples", [3, 21])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "linear1"])
def test_the_layer_whose_output_overflows_is_named(layer: str, fused: bool, samples: int) -> None:
    network = small_convnet(fused)
    parameters = np.abs(network.initial(0)["parameters"])  # so that sums of large numbers do not cancel
    network.layout.views(parameters)[f"{layer}.weight"].fill(HUGE)
    assert first_in(network, parameters, samples).startswith(f"the output of {layer} holds ")


def test_logits_too_far_apart_make_the_loss_the_first_place_reported() -> None:
    network = Network([Flatten(), Linear(2)], SHAPE)
    parameters = np.zeros(network.layout.size, np.float32)
    network.layout.views(parameters)["linear1.bias"][:] = HUGE, -HUGE
    assert first_in(network, parameters) == "the loss is inf"


def test_an_overflow_in_backward_names_the_layer_that_returns_it() -> None:
    network = small_convnet()
    parameters = network.initial(0)["parameters"]
    views = network.layout.views(parameters)
    views["conv2.weight"].fill(0)
    views["conv2.bias"].fill(1e-30)  # logits of about 1e9
    views["linear1.weight"][...] = HUGE * np.array([1, -1, 1], np.float32)[:, None]
    assert "the gradient of the input of linear1 holds " in first_in(network, parameters)


def test_an_overflow_in_a_residual_network_is_named() -> None:
    """The backward pass of an addition returns two gradients."""
    network = Network([Residual([Conv2d(2, 3, padding=1), ReLU()]), Flatten(), Linear(2)], SHAPE)
    parameters = network.initial(0)["parameters"]
    assert first_in(network, parameters) == ""
    network.layout.views(parameters)["linear1.weight"][...] = HUGE * np.array([1, -1], np.float32)[:, None]
    assert first_in(network, parameters).startswith("the output of linear1 holds ")


def test_a_gradient_that_overflows_only_in_the_sum_over_blocks_is_named() -> None:
    network = Network([Flatten(), Linear(2)], SHAPE)
    images = np.full((8, 8, 2 * network.block, 2), 4.8e38 / network.block, np.float32)
    labels = np.zeros(2 * network.block, np.int64)
    parameters = np.zeros(network.layout.size, np.float32)
    for block, expected in ((network.block, ""), (2 * network.block, "the gradient of linear1.weight holds -inf")):
        # Softmax gives 1/2 each: a block of samples adds up to 2.4e38, two of them to more than float32 holds.
        block_images = np.ascontiguousarray(images[..., :block, :])
        assert (
            first_not_finite(
                network, {"parameters": parameters, "buffers": np.empty(0)}, block_images, labels[:block], Workspace()
            )
            == expected
        )


def test_a_statistic_that_overflows_is_named_although_all_outputs_are_finite() -> None:
    """An infinite variance makes every normalised value 0."""
    network = Network([BatchNorm2d(), Flatten(), Linear(2)], SHAPE)
    vectors = network.initial(0)
    images, labels = np.zeros((*SHAPE[1:], 4, SHAPE[0]), np.float32), np.zeros(4, np.int64)
    images[..., :2, :] = 1e30
    found = first_not_finite(network, vectors, images, labels, Workspace())
    assert found == "the statistic for norm1.running_var holds inf"
