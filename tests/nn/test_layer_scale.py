from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import random_parameters, training_pass
from selection import examples

from dptrain.nn import Flatten, LayerScale, Linear, Network, check_layer


@examples(10)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), samples=st.integers(1, 3))
def test_backward_is_the_gradient(shape: tuple[int, ...], samples: int) -> None:
    check_layer(LayerScale(), shape, samples)


def test_values_and_gradients_agree_with_pytorch() -> None:
    import torch

    generator = np.random.default_rng(0)
    x, dy = generator.normal(size=(2, 6, 5, 3, 4)).astype(np.float32)
    layer = LayerScale()
    layer.bind((4, 6, 5))
    call = training_pass(random_parameters(layer, generator))
    given, scale = torch.tensor(x, requires_grad=True), torch.tensor(call.parameters["scale"], requires_grad=True)
    expected = given * scale
    expected.backward(torch.tensor(dy))
    y, saved = layer.forward(x, call)
    dx = layer.backward(dy.copy(), saved, call)
    assert dx is not None
    assert given.grad is not None
    assert scale.grad is not None
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(dx, given.grad.numpy(), rtol=1e-6)
    np.testing.assert_allclose(call.gradients["scale"], scale.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_factors_begin_at_the_initial_value_and_have_no_weight_decay() -> None:
    network = Network([LayerScale(0.125), Flatten(), Linear(2)], (3, 2, 2))
    assert network.initial(0)["parameters"][network.layout.slices["layer_scale1.scale"]].tolist() == [0.125] * 3
    assert not network.tensors["layer_scale1.scale"].decays


def test_an_initial_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="initial_value is nan, expected a finite number"):
        LayerScale(float("nan"))
