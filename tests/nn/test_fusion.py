from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from every_layer import LAYERS, LISTED
from hypothesis import given
from hypothesis import strategies as st
from networks import ready
from selection import examples, quick_first

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.check import check_layer
from dptrain.nn.convolution.cost import DENSE
from dptrain.nn.fused_conv import ConvPoolReLU
from dptrain.nn.fused_norm import NormActivation
from dptrain.nn.graph import Part, Residual
from dptrain.nn.layer import Layer, Pass
from dptrain.nn.layers.activation import Activation, ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.network import Network
from dptrain.nn.tensor import Tensor


def layers(algorithm: str, kernel: int, stride: int, padding: int, bias: bool, relu: bool) -> list[Layer]:
    if algorithm.startswith("winograd"):
        kernel, stride = 3, 1
    conv = Conv2d(4, kernel, stride=stride, padding=padding, bias=bias, algorithm=algorithm)
    return [conv, *([ReLU()] if relu else []), MaxPool2d(2), Flatten(), Linear(3)]


@examples(60)
@given(
    algorithm=st.sampled_from([*DENSE, "grouped"]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    bias=st.booleans(),
    relu=st.booleans(),
    height=st.integers(5, 10),
    width=st.integers(5, 10),
    samples=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_fused_network_gives_the_results_of_the_plain_one(
    algorithm: str,
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
    relu: bool,
    height: int,
    width: int,
    samples: int,
    seed: int,
) -> None:
    arguments, shape = (algorithm, kernel, stride, padding, bias, relu), (2, height, width)
    plain = Network(layers(*arguments), shape, fused=False)
    fused = Network(layers(*arguments), shape)
    assert len(fused.stages) == len(plain.stages) - 1 - relu
    generator = np.random.default_rng(seed)
    parameters = generator.normal(size=plain.layout.size)
    images = generator.normal(size=array_shape(shape, samples))
    labels = generator.integers(0, 3, samples)
    gradients = np.zeros((2, plain.layout.size))
    outcomes = [
        network.loss_and_grad(ready(network, parameters), images, labels, gradient, Workspace(np.float64))
        for network, gradient in zip((plain, fused), gradients, strict=True)
    ]
    # Bias and ReLU commute with the maximum exactly, but a matrix product rounds by a column's place in it, and tiles
    # cover other pixels.
    assert outcomes[0].correct == outcomes[1].correct
    np.testing.assert_allclose(outcomes[0].loss_sum, outcomes[1].loss_sum, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)


class _AsOneLayer(Layer):
    """The fused layers as one layer, so that the gradient checker can check them."""

    def __init__(self, conv: Conv2d, relu: bool) -> None:
        self.conv, self.pool, self.relu = conv, MaxPool2d(2), relu

    def bind(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        output_shape = self.pool.bind(self.conv.bind(input_shape))
        self.joined = ConvPoolReLU(self.conv, self.pool, relu=self.relu)
        return output_shape

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return self.joined.forward(x, call)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        return self.joined.backward(dy, saved, call)

    def tensors(self) -> list[Tensor]:
        return self.conv.tensors()


@pytest.mark.parametrize("algorithm", [*DENSE, "grouped"])
@quick_first("size", [(6, 5), (8, 4), (7, 9)], ids=str)
@quick_first("relu", [True, False])
def test_backward_is_the_gradient(size: tuple[int, int], algorithm: str, relu: bool) -> None:
    check_layer(_AsOneLayer(Conv2d(3, 3, padding=1, algorithm=algorithm), relu), (2, *size), 2)


ACTIVATIONS = [name for name in LAYERS if issubclass(LISTED[name], Activation)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("block", [3, 64])
def test_norm_and_activation_fused_give_the_results_of_the_plain_network(
    activation: str, scale: bool, block: int
) -> None:
    assert len(ACTIVATIONS) >= 4
    layers = [Conv2d(4), BatchNorm2d(scale=scale), LISTED[activation](), Conv2d(3), Flatten(), Linear(3)]
    generator, results = np.random.default_rng(0), []
    images, labels = generator.normal(size=(7, 8, 10, 2)), generator.integers(0, 3, 10)
    for fused in (False, True):
        network = Network([copy(layer) for layer in layers], (2, 7, 8), fused=fused)
        network.plan.segments = [replace(segment, block=block) for segment in network.plan.segments]
        parameters = np.random.default_rng(1).normal(size=network.layout.size)
        buffers = np.random.default_rng(2).uniform(0.5, 2, network.buffer_layout.size)
        gradient, statistics, workspace = np.empty_like(parameters), np.empty_like(buffers), Workspace(np.float64)
        prepared = network.prepare(parameters, buffers, Workspace(np.float64))
        network.loss_and_grad(prepared, images, labels, gradient, workspace, statistics=statistics)
        results.append((gradient, statistics, network.predict(prepared, images, workspace).copy()))
        assert [type(stage) for stage in network.stages][1] is (NormActivation if fused else BatchNorm2d)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_only_known_layers_in_a_row_are_fused() -> None:
    def stages(*layers: Layer) -> list[type[Layer]]:
        return [type(stage) for stage in Network([*layers, Flatten(), Linear(2)], (1, 9, 9)).stages[:-2]]

    assert stages(Conv2d(2), ReLU(), Conv2d(2), ReLU(), MaxPool2d()) == [Conv2d, ReLU, ConvPoolReLU]
    assert stages(Conv2d(2), MaxPool2d(), ReLU()) == [ConvPoolReLU, ReLU]
    assert stages(MaxPool2d(), Conv2d(2), BatchNorm2d(), ReLU()) == [MaxPool2d, Conv2d, NormActivation]


@pytest.mark.parametrize("pool", [MaxPool2d(3), MaxPool2d(2, stride=1), MaxPool2d((2, 1))], ids=repr)
def test_pooling_of_other_windows_stays_a_separate_layer(pool: MaxPool2d) -> None:
    layers = [Conv2d(2), ReLU(), pool, Flatten(), Linear(2)]
    assert Network(layers, (1, 9, 9)).stages == layers


def test_subclasses_are_not_fused() -> None:
    class LeakyReLU(ReLU):
        """Computes something else."""

    layers = [Conv2d(2), LeakyReLU(), MaxPool2d(), Flatten(), Linear(2)]
    assert Network(layers, (1, 9, 9)).stages == layers
    assert repr(layers[1]) == "LeakyReLU()"


def test_a_value_that_is_used_twice_is_not_fused_away() -> None:
    block = Residual([ReLU(), MaxPool2d()], MaxPool2d())
    network = Network([Conv2d(2, padding=1), block, Flatten(), Linear(2)], (1, 8, 8))
    assert [type(stage) for stage in network.stages[:2]] == [Conv2d, ReLU]
    inside = Network(
        [Residual([Conv2d(1), ReLU(), MaxPool2d()], MaxPool2d(4, stride=2)), Flatten(), Linear(2)], (1, 8, 8)
    )
    assert [type(stage) for stage in inside.stages[:2]] == [ConvPoolReLU, MaxPool2d]


@pytest.mark.parametrize("algorithm", DENSE)
def test_a_gradient_added_to_that_of_a_fused_layer_does_not_stay(algorithm: str) -> None:
    """Pooling leaves out the last row and column, so the convolution does not read the last pixels of its input."""
    shape, workspace = (2, 9, 9), Workspace(np.float64)

    pooled: list[Part] = [Conv2d(4, algorithm=algorithm), MaxPool2d(2)]
    parts: list[Part] = [Conv2d(4, algorithm="im2col"), Residual(Conv2d(4, 4, stride=3), pooled), Flatten(), Linear(3)]
    network = Network(parts, shape)
    generator = np.random.default_rng(0)
    parameters, images = generator.normal(size=network.layout.size), generator.normal(size=array_shape(shape, 3))
    gradients = np.zeros((2, network.layout.size))
    for gradient in gradients:
        network.loss_and_grad(ready(network, parameters), images, np.arange(3), gradient, workspace)
    np.testing.assert_array_equal(gradients[1], gradients[0])
