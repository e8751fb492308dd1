"""Initial values of weights: their distribution, and identities."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn import Conv2d, Flatten, Linear, Network, he_uniform, uniform_fan_in
from dptrain.nn.tensor import Init

SHAPE = (6, 5, 5)


def weight(layer: Conv2d) -> Array:
    network = Network([layer, Flatten()], SHAPE)
    return network.layout.views(network.initial(3)["parameters"])["conv1.weight"]


@pytest.mark.parametrize(("init", "gain"), [(he_uniform, 2.0), (uniform_fan_in, 1 / 3)])
def test_weights_have_the_variance_of_their_initialiser(init: Callable[[int], Init], gain: float) -> None:
    values = weight(Conv2d(200, 3, init=init))
    fan_in = 6 * 9
    assert abs(values.var() * fan_in / gain - 1) < 0.03
    assert abs(values).max() <= math.sqrt(3 * gain / fan_in)
    assert abs(values).max() > 0.99 * math.sqrt(3 * gain / fan_in)


def test_uniform_fan_in_is_the_default_of_pytorch() -> None:
    import torch

    theirs = torch.nn.Conv2d(6, 200, 3).weight.detach().numpy()
    ours = weight(Conv2d(200, 3, init=uniform_fan_in))
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.03)
    np.testing.assert_allclose(abs(ours).max(), abs(theirs).max(), rtol=0.01)


def test_a_linear_layer_takes_an_initialiser() -> None:
    network = Network([Flatten(), Linear(500, init=uniform_fan_in)], SHAPE)
    values = network.layout.views(network.initial(3)["parameters"])["linear1.weight"]
    assert 0.99 / math.sqrt(150) < abs(values).max() <= 1 / math.sqrt(150)


@pytest.mark.parametrize(("out", "kernel", "groups"), [(9, 3, 1), (4, 3, 1), (6, (2, 5), 3), (8, 1, 2)])
def test_the_first_filters_are_those_of_pytorchs_dirac(out: int, kernel: int | tuple[int, int], groups: int) -> None:
    import torch

    ours = weight(Conv2d(out, kernel, groups=groups, identity=True))
    others = weight(Conv2d(out, kernel, groups=groups))
    theirs = torch.from_numpy(others.copy())
    torch.nn.init.dirac_(theirs[: ours.shape[1]])
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert (ours == others).mean() < 1


def test_an_identity_copies_its_input() -> None:
    x = np.random.default_rng(0).normal(size=(5, 5, 2, 6)).astype(np.float32)
    network = Network([Conv2d(8, 3, padding=1, identity=True, bias=False), Flatten()], SHAPE)
    vectors = network.initial(0)
    y = network.predict(network.prepare(vectors["parameters"], vectors["buffers"], Workspace()), x, Workspace())
    np.testing.assert_allclose(y.reshape(2, 8, 5, 5)[:, :6], x.transpose(2, 3, 0, 1), atol=1e-5)
