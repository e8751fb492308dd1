from __future__ import annotations

import numpy as np
import pytest
from networks import training_pass

from dptrain.nn import Flatten, GlobalAvgPool2d, Linear, Network, Residual, Scale, check_layer


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])
def test_backward_is_the_gradient(shape: tuple[int, ...]) -> None:
    check_layer(Scale(-0.3), shape)


def test_values_and_gradients_agree_with_pytorch() -> None:
    import torch

    x, dy = np.random.default_rng(0).normal(size=(2, 4, 5, 3, 2)).astype(np.float32)
    given = torch.tensor(x, requires_grad=True)
    expected = given * (1 / 9)
    expected.backward(torch.tensor(dy))
    layer, call = Scale(1 / 9), training_pass({})
    y, saved = layer.forward(x, call)
    assert given.grad is not None
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-7)
    np.testing.assert_allclose(layer.backward(dy.copy(), saved, call), given.grad.numpy(), rtol=1e-7)


def test_the_factor_is_part_of_the_specification() -> None:
    network = Network([Flatten(), Linear(2), Scale(0.25)], (1, 2, 2))
    assert network.spec()["layers"][-1] == {"name": "scale1", "inputs": ["linear1"], "type": "Scale", "factor": 0.25}


def test_a_scaled_body_does_not_change_the_gradient_of_the_shortcut() -> None:
    check_layer([Residual([Scale(0.5)]), GlobalAvgPool2d()], (2, 3, 3))


@pytest.mark.parametrize("factor", [0, float("nan"), float("inf")])
def test_a_factor_without_a_use_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"factor is {factor}, expected a finite number other than 0"):
        Scale(factor)
