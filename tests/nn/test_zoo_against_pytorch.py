"""Every architecture computes what PyTorch computes with the same parameters: logits, gradients, running averages."""

from __future__ import annotations

import numpy as np
import pytest
from networks import narrow, ready

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.zoo import ARCHITECTURES

SAMPLES = 12


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_agrees_with_pytorch(name: str) -> None:
    import torch
    from torch_networks import TorchNetwork

    network, generator = narrow(name, classes=10), np.random.default_rng(0)
    vectors = network.initial(0)
    for name_, view in network.layout.views(vectors["parameters"]).items():  # biases other than 0, weights other than 1
        if network.tensors[name_].trained:
            view += (0.01 + 0.1 * np.abs(view).mean()) * generator.normal(size=view.shape)
    theirs = TorchNetwork(network, vectors)
    channels, *extents = network.input_shape
    images = generator.normal(size=(*extents, SAMPLES, channels)).astype(np.float32)
    labels = np.arange(SAMPLES) % 10
    prepared = ready(network, vectors["parameters"], vectors["buffers"])
    given = torch.from_numpy(images.transpose(2, 3, 0, 1).copy())

    logits = network.predict(prepared, images, Workspace())
    assert relative(logits, theirs(given, False).detach().numpy()) < 1e-4

    gradient, statistics = (np.empty_like(vectors[key]) for key in ("parameters", "buffers"))
    outcome = network.loss_and_grad(prepared, images, labels, gradient, Workspace(), statistics=statistics)
    loss = torch.nn.functional.cross_entropy(theirs(given, True), torch.from_numpy(labels), reduction="sum")
    loss.backward()
    assert outcome.loss_sum == pytest.approx(loss.item(), rel=1e-4)
    for key, view in network.layout.views(gradient).items():
        if network.tensors[key].trained:
            assert relative(view, theirs.tensors[key].grad.numpy()) < 1e-3, key
        else:
            assert not view.any(), key

    network.update_buffers(vectors["buffers"], statistics / SAMPLES)
    with torch.no_grad():
        theirs.move_running_averages()
    for key, view in network.buffer_layout.views(vectors["buffers"]).items():
        assert relative(view, theirs.tensors[key].numpy()) < 1e-4, key
