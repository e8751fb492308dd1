"""Batch normalisation folded into convolutions against the network as it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn import GELU, BatchNorm2d, Conv2d, Flatten, Layer, Linear, MaxPool2d, Network, ReLU, Residual
from dptrain.nn.folding import FoldedNorm
from dptrain.nn.fused_conv import ConvPoolReLU

SHAPE = (3, 9, 8)


def logits(network: Network, *, folded: bool) -> Array:
    generator = np.random.default_rng(0)
    parameters = generator.normal(size=network.layout.size)  # weights of both signs
    buffers = generator.uniform(0.5, 2, network.buffer_layout.size)
    images = generator.normal(size=array_shape(SHAPE, 5))
    prepare = network.prepare_evaluation if folded else network.prepare
    prepared = prepare(parameters, buffers, Workspace(np.float64))
    return network.predict(prepared, images, Workspace(np.float64)).copy()


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        (lambda: [Conv2d(4), BatchNorm2d(), ReLU(), Conv2d(5, bias=False), BatchNorm2d(scale=False)], 2),
        (lambda: [Conv2d(4, bias=False), MaxPool2d(), BatchNorm2d(scale=False), GELU()], 1),
        (lambda: [Conv2d(4, 1, groups=1), MaxPool2d(), BatchNorm2d(), GELU()], 0),  # its scale may be negative
        (lambda: [Conv2d(4), ReLU(), BatchNorm2d()], 0),
        (lambda: [BatchNorm2d(), Conv2d(6, groups=3), BatchNorm2d()], 1),
        (lambda: [Conv2d(3, padding=1), Residual(BatchNorm2d())], 0),  # the value between them is used twice
        (lambda: [Residual([Conv2d(3, padding=1), BatchNorm2d(), ReLU()], [Conv2d(3, 1), BatchNorm2d()])], 2),
    ],
)
def test_a_folded_network_computes_the_same_logits(parts: Any, count: int) -> None:
    network = Network([*parts(), Flatten(), Linear(3)], SHAPE)
    stages = [node.layer for node in network.evaluation_graph.nodes]
    assert sum(isinstance(stage, FoldedNorm) for stage in stages) == count
    np.testing.assert_allclose(logits(network, folded=True), logits(network, folded=False), rtol=1e-9, atol=1e-10)


def test_folding_does_not_change_the_network_that_trains() -> None:
    conv = Conv2d(4, bias=False)
    network = Network([conv, BatchNorm2d(), Flatten(), Linear(3)], SHAPE)
    before = logits(network, folded=False)
    logits(network, folded=True)
    assert not conv.bias
    assert np.array_equal(logits(network, folded=False), before)


def test_a_users_convolution_is_not_folded() -> None:
    class Mine(Conv2d):
        """Computes something else."""

    layers: list[Layer] = [Mine(4), BatchNorm2d(), Flatten(), Linear(3)]
    network = Network(layers, SHAPE)
    assert [node.layer for node in network.evaluation_graph.nodes] == layers


def test_the_size_of_the_cache_reaches_folded_layers() -> None:
    parts = [Conv2d(4, bias=False), MaxPool2d(), BatchNorm2d(scale=False), Flatten(), Linear(3)]
    network = Network(parts, SHAPE)
    network.set_cache(123)
    (folded,) = (node.layer for node in network.evaluation_graph.nodes if isinstance(node.layer, FoldedNorm))
    assert isinstance(folded.stage, ConvPoolReLU)
    assert folded.stage.correlation.cache == 123 << 10
