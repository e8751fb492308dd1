"""GlobalAvgPool2d against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from networks import training_pass

from dptrain.nn import GlobalAvgPool2d, Linear, Network, check_layer


def test_backward_is_the_gradient() -> None:
    check_layer(GlobalAvgPool2d(), (3, 4, 5))


def test_passes_agree_with_pytorch() -> None:
    import torch

    generator = np.random.default_rng(0)
    x, dy = generator.normal(size=(7, 5, 6, 4)).astype(np.float32), generator.normal(size=(6, 4)).astype(np.float32)
    layer = GlobalAvgPool2d()
    assert Network([layer, Linear(2)], (4, 7, 5)).layers[0].name == "avgpool1"
    call = training_pass({})
    y, saved = layer.forward(x, call)
    given = torch.tensor(x.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    theirs = torch.nn.functional.adaptive_avg_pool2d(given, 1).flatten(1)
    theirs.backward(torch.tensor(dy))
    assert given.grad is not None
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)
    dx = layer.backward(dy, saved, call)
    np.testing.assert_allclose(dx, given.grad.numpy().transpose(2, 3, 0, 1), rtol=1e-6)


def test_features_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="needs feature maps"):
        GlobalAvgPool2d().bind((12,))
