"""BatchNorm2d against PyTorch, and its independence of blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.memory import Array, Workspace
from dptrain.errors import ModelError
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Linear, Network, Pass, check_layer
from dptrain.nn.layer import Views


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 2), (2, 3, 1)])
@pytest.mark.parametrize("samples", [2, 5])
def test_backward_is_the_gradient(shape: tuple[int, ...], samples: int) -> None:
    check_layer(BatchNorm2d(), shape, samples)


def arrays(seed: int, samples: int = 6) -> tuple[Array, Array, dict[str, Array]]:
    """x, dy and all tensors of a layer of 4 channels."""
    generator = np.random.default_rng(seed)
    x, dy = generator.normal(3, 2, size=(2, 5, 7, samples, 4)).astype(np.float32)
    tensors = {name: generator.uniform(0.5, 2, 4).astype(np.float32) for name in ("weight", "bias", "mean", "var")}
    return x, dy, tensors


@pytest.mark.parametrize("training", [True, False])
def test_passes_and_running_averages_agree_with_pytorch(training: bool) -> None:
    import torch

    x, dy, tensors = arrays(0)
    layer = BatchNorm2d(momentum=0.3, eps=1e-3)
    Network([layer, Flatten(), Linear(2)], (4, 5, 7))
    call = Pass(
        {name: tensors[name] for name in ("weight", "bias")},
        {"running_mean": tensors["mean"], "running_var": tensors["var"]},
        Workspace(),
        training=training,
        gradients=Views({name: np.zeros(4, np.float32) for name in ("weight", "bias")}),
        statistics=Views({name: np.zeros(4, np.float32) for name in ("running_mean", "running_var")}),
    )
    y, saved = layer.forward(x, call)

    theirs = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.3).train(training)
    state = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    theirs.load_state_dict({key: torch.tensor(tensors[name]) for key, name in state.items()}, strict=False)
    given = torch.tensor(x.transpose(2, 3, 0, 1).copy(), requires_grad=True)
    result = theirs(given)
    np.testing.assert_allclose(y, result.detach().numpy().transpose(2, 3, 0, 1), rtol=1e-4, atol=1e-5)
    if not training:
        return
    result.backward(torch.tensor(dy.transpose(2, 3, 0, 1).copy()))
    dx = layer.backward(dy.copy(), saved, call)
    assert dx is not None
    assert given.grad is not None
    np.testing.assert_allclose(dx, given.grad.numpy().transpose(2, 3, 0, 1), rtol=1e-3, atol=1e-5)
    for name, gradient in call.gradients.items():
        np.testing.assert_allclose(gradient, getattr(theirs, name).grad, rtol=1e-4, atol=1e-3, err_msg=name)
    for name, statistic in call.statistics.items():
        moved = 0.7 * call.buffers[name] + 0.3 * statistic
        np.testing.assert_allclose(moved, getattr(theirs, name), rtol=1e-5, err_msg=name)


def test_running_averages_move_to_the_mean_over_the_samples_of_all_shards() -> None:
    network = Network([BatchNorm2d(), Flatten(), Linear(3)], (2, 8, 8))
    vectors = network.initial(0)
    x = np.random.default_rng(1).normal(3, 2, size=(8, 8, 6, 2)).astype(np.float32)
    total = np.zeros(4, np.float32)
    for rows in (slice(0, 5), slice(5, 5), slice(5, 6)):
        statistics, gradient = np.empty(4, np.float32), np.empty(network.layout.size, np.float32)
        labels = np.zeros(rows.stop - rows.start, np.int64)
        prepared = ready(network, vectors["parameters"])
        network.loss_and_grad(prepared, x[:, :, rows], labels, gradient, Workspace(), statistics=statistics)
        total += statistics
    network.update_buffers(vectors["buffers"], total / 6)
    np.testing.assert_allclose(vectors["buffers"][:2], 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(vectors["buffers"][2:], 0.9 + 0.1 * 4, rtol=0.1)


@pytest.mark.parametrize("options", [{"eps": 0}, {"eps": math.inf}, {"momentum": 1.5}, {"momentum": -0.1}])
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a finite eps above 0 and momentum from 0 to 1"):
        BatchNorm2d(**options)


def test_features_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs feature maps \(C, H, W\), it gets \(12,\)"):
        BatchNorm2d().bind((12,))


def test_one_value_a_channel_cannot_be_normalised() -> None:
    network = Network([Conv2d(4), BatchNorm2d(), Flatten(), Linear(3)], (2, 3, 3))
    images, gradient = np.ones((3, 3, 1, 2), np.float32), np.empty(network.layout.size, np.float32)
    prepared = ready(network, network.initial(0)["parameters"])
    message = r"layer norm1 \(BatchNorm2d\) gets one value for each channel.*: use another --batch-size"
    with pytest.raises(ModelError, match=message):
        network.loss_and_grad(prepared, images, np.zeros(1, np.int64), gradient, Workspace())
