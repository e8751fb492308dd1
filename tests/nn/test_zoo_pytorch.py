"""Built-in networks against PyTorch: logits, loss, gradient and running averages, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.memory import Workspace
from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES

SMALL: dict[str, dict[str, Any]] = {
    "convnet": {"widths": [3, 4]},
    "linear": {},
    "resnet20": {"width": 2},
    "vgg11": {"width": 2},
    "resnet9": {"width": 2},
    "airbench": {"widths": [25, 26, 27]},
}
SHAPE, SAMPLES, CLASSES = (3, 17, 16), 9, 5


def test_every_network_is_compared() -> None:
    assert SMALL.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_a_network_agrees_with_pytorch(name: str) -> None:
    import torch
    from torch_networks import TorchNetwork

    network = Network(ARCHITECTURES[name](SHAPE, CLASSES, **SMALL[name]), SHAPE)
    generator = np.random.default_rng(0)
    vectors = {key: vector.astype(np.float64) for key, vector in network.initial(0).items()}
    vectors["parameters"] += 0.1 * generator.normal(size=network.layout.size)  # no zeros, and identities are disturbed
    images = generator.normal(size=(*SHAPE[1:], SAMPLES, SHAPE[0]))
    labels = generator.integers(0, CLASSES, SAMPLES)
    theirs = TorchNetwork(network, vectors)
    given = torch.from_numpy(images.transpose(2, 3, 0, 1).copy())

    prepared = ready(network, vectors["parameters"], vectors["buffers"])
    np.testing.assert_allclose(
        network.predict(prepared, images, Workspace(np.float64)),
        theirs(given, training=False).detach().numpy(),
        rtol=1e-6,
        atol=1e-7,
    )
    gradient, statistics = np.zeros(network.layout.size), np.zeros(network.buffer_layout.size)
    outcome = network.loss_and_grad(prepared, images, labels, gradient, Workspace(np.float64), statistics=statistics)
    loss = torch.nn.functional.cross_entropy(theirs(given, training=True), torch.from_numpy(labels), reduction="sum")
    loss.backward()
    assert outcome.loss_sum == pytest.approx(loss.item(), rel=1e-8)
    for tensor, ours in network.layout.views(gradient).items():
        if tensor in theirs.trained:
            expected = theirs.tensors[tensor].grad.numpy()
            assert np.linalg.norm(ours - expected) <= 1e-6 * max(1e-3, float(np.linalg.norm(expected))), tensor
    network.update_buffers(vectors["buffers"], statistics / SAMPLES)
    theirs.move_running_averages()
    for tensor, ours in network.buffer_layout.views(vectors["buffers"]).items():
        np.testing.assert_allclose(ours, theirs.tensors[tensor].numpy(), rtol=1e-6, atol=1e-9)
