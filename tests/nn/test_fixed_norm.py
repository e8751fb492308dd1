"""Frozen batch normalisation: running averages in training, against PyTorch after eval(); buffers that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Workspace
from dptrain.nn import BatchNorm2d, Conv2d, Flatten, Linear, Network, ReLU, Residual
from dptrain.nn.graph import Part

SHAPE, SAMPLES = (2, 6, 6), 20
NORM1 = {"norm1.weight", "norm1.bias", "norm1.running_mean", "norm1.running_var"}


def layers() -> list[Part]:
    body = Residual([Conv2d(3, 3, padding=1), BatchNorm2d(), ReLU(), Conv2d(3, 3, padding=1)])
    return [Conv2d(3), BatchNorm2d(), ReLU(), body, BatchNorm2d(), Flatten(), Linear(3)]


@pytest.mark.parametrize(
    "frozen", [NORM1, {name.replace("1", "2") for name in NORM1}, NORM1 | {"conv1.weight", "conv1.bias"}]
)
def test_a_frozen_norm_computes_and_differentiates_as_pytorchs_after_eval(frozen: set[str]) -> None:
    import torch
    from torch_networks import TorchNetwork

    class Fixed(TorchNetwork):
        def _batch_norm(self, layer: Any, training: bool, *more: Any) -> Any:
            name = f"{layer.name}.running_mean"
            return super()._batch_norm(layer, training and name not in frozen, *more)

    network, generator = Network(layers(), SHAPE), np.random.default_rng(0)
    network.freeze(frozen)
    vectors = {key: vector.astype(np.float64) for key, vector in network.initial(0).items()}
    vectors["parameters"] += 0.1 * generator.normal(size=network.layout.size)
    vectors["buffers"] += generator.uniform(0, 1, network.buffer_layout.size)
    images, labels = generator.normal(size=array_shape(SHAPE, SAMPLES)), generator.integers(0, 3, SAMPLES)
    gradient, statistics = np.zeros(network.layout.size), np.zeros(network.buffer_layout.size)
    prepared = ready(network, vectors["parameters"], vectors["buffers"])
    parameters = [name for name in network.layout.shapes if name in frozen]
    options: dict[str, Any] = {"statistics": statistics, "frozen": parameters}
    outcome = network.loss_and_grad(prepared, images, labels, gradient, Workspace(np.float64), **options)
    theirs = Fixed(network, vectors)
    logits = theirs(torch.from_numpy(images.transpose(2, 3, 0, 1).copy()), training=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    loss.backward()
    assert outcome.loss_sum == pytest.approx(loss.item(), rel=1e-9)
    for name, ours in network.layout.views(gradient).items():
        expected = 0 if name in frozen else theirs.tensors[name].grad.numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-9, err_msg=name)


def test_buffers_that_are_frozen_keep_their_bits_and_the_others_move() -> None:
    network = Network(layers(), SHAPE)
    network.freeze(NORM1 | {"norm2.running_var"})
    buffers = np.full(network.buffer_layout.size, -0.0, np.float32)
    before = buffers.copy()
    network.update_buffers(buffers, np.ones_like(buffers))
    for name, view in network.buffer_layout.views(buffers).items():
        kept = network.buffer_layout.views(before)[name].tobytes()
        assert (view.tobytes() == kept) == (name.startswith("norm1") or name == "norm2.running_var"), name


def test_a_norm_of_which_a_tensor_is_trained_normalises_by_the_microbatch() -> None:
    network = Network(layers(), SHAPE)
    stages = list(network.stages)
    network.freeze(NORM1 - {"norm1.bias"})
    assert network.stages == stages


def test_other_samples_do_not_change_an_output_behind_frozen_norms_alone() -> None:
    network, generator = Network([Conv2d(3), BatchNorm2d(), Flatten(), Linear(3)], SHAPE), np.random.default_rng(0)
    network.freeze(NORM1)
    images, labels = generator.normal(size=array_shape(SHAPE, 2)).astype(np.float32), np.array([0, 1])
    prepared = ready(network, network.initial(0)["parameters"])
    losses = [
        network.loss_and_grad(
            prepared, images[..., rows, :], labels[rows], np.zeros(network.layout.size, np.float32), Workspace()
        ).loss_sum
        for rows in (slice(0, 1), slice(1, 2), slice(0, 2))
    ]
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-6)
