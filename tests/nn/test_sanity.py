"""Checks of every architecture that need no reference: it memorises a batch, learns a pattern, and learns no noise.

Narrow versions on small images, trained by AdamW in one process.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from networks import narrow, ready
from numpy.typing import NDArray
from selection import quick_first

from dptrain.arrays.memory import Array, Workspace
from dptrain.config.recipes import read_recipe
from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.nn.zoo.airbench import airbench
from dptrain.optim.adamw import AdamW
from dptrain.optim.optimizer import Parameter

CLASSES = 10

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def patterns(network: Network, samples: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """A random image for each class, the same for every seed, plus noise: (H, W, N, C) and (N,)."""
    channels, *extents = network.input_shape
    labels = np.arange(samples, dtype=np.int64) % CLASSES
    means = np.random.default_rng(0).normal(size=(*extents, CLASSES, channels))
    noise = np.random.default_rng(seed).normal(0, 0.7, size=(*extents, samples, channels))
    return (means[..., labels, :] + noise).astype(np.float32), labels


def shuffled(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """In place of each label, every label equally often."""
    return (labels + np.arange(len(labels)) // CLASSES) % CLASSES


def trained(
    network: Network, images: Array, labels: NDArray[np.int64], steps: int, batch: int, lr: float
) -> dict[str, Array]:
    """The vectors after training."""
    optimizer = AdamW([Parameter(name, shape) for name, shape in network.layout.shapes.items()], weight_decay=0)
    vectors = network.initial(0)
    vectors |= {slot: np.zeros_like(vectors["parameters"]) for slot in optimizer.slots}
    gradient, statistics = np.empty_like(vectors["parameters"]), np.empty_like(vectors["buffers"])
    workspace, generator = Workspace(), np.random.default_rng(0)
    for step in range(steps):
        rows = generator.permutation(len(labels))[:batch]
        prepared = network.prepare(vectors["parameters"], vectors["buffers"], workspace)
        some = np.ascontiguousarray(images[..., rows, :])
        network.loss_and_grad(prepared, some, labels[rows], gradient, workspace, statistics=statistics)
        optimizer.update(vectors, gradient / batch, lr, step)
        network.update_buffers(vectors["buffers"], statistics / batch)
    return vectors


def predictions(network: Network, vectors: dict[str, Array], images: Array) -> Array:
    """Logits (N, K), as in an evaluation."""
    prepared = network.prepare_evaluation(vectors["parameters"], vectors["buffers"], Workspace())
    return network.predict(prepared, images, Workspace()).copy()


def accuracy(network: Network, vectors: dict[str, Array], images: Array, labels: NDArray[np.int64]) -> float:
    return float((predictions(network, vectors, images).argmax(axis=1) == labels).mean())


@quick_first("name", ARCHITECTURES)
def test_it_memorises_one_batch_with_shuffled_labels(name: str) -> None:
    network = narrow(name, CLASSES)
    images, labels = patterns(network, 40, seed=1)
    labels = shuffled(labels)
    assert accuracy(network, network.initial(0), images, labels) < 0.4
    assert accuracy(network, trained(network, images, labels, steps=50, batch=40, lr=0.01), images, labels) == 1


@pytest.mark.slow
@every_architecture
def test_it_learns_a_pattern_but_nothing_from_shuffled_labels(name: str) -> None:
    """On samples that it has not seen. Chance is 0.1."""
    network = narrow(name, CLASSES)
    images, labels = patterns(network, 200, seed=1)
    unseen = patterns(network, 100, seed=2)
    assert accuracy(network, trained(network, images, labels, steps=40, batch=50, lr=0.004), *unseen) > 0.9
    assert accuracy(network, trained(network, images, shuffled(labels), steps=40, batch=50, lr=0.004), *unseen) < 0.35


@pytest.mark.parametrize("name", [*ARCHITECTURES, "airbench94-muon"])
def test_the_loss_at_initialisation_is_log_k(name: str) -> None:
    """Of narrow networks. Logits of variance v add about v / 2: up to 0.3 in the wide ones that begin as in PyTorch."""
    if name == "airbench94-muon":
        options = {**read_recipe(name)["model_options"], "widths": (2, 3, 3)}
        network = Network(airbench((3, 16, 16), CLASSES, **options), (3, 16, 16))
    else:
        network = narrow(name, CLASSES)
    images, labels = patterns(network, 60, seed=1)
    vectors, gradient = network.initial(0), np.empty(network.layout.size, np.float32)
    prepared = ready(network, vectors["parameters"], vectors["buffers"])
    outcome = network.loss_and_grad(prepared, images, labels, gradient, Workspace())
    assert outcome.loss_sum / len(labels) == pytest.approx(math.log(CLASSES), abs=0.05)


@every_architecture
def test_the_evaluation_of_a_sample_does_not_depend_on_the_others(name: str) -> None:
    network = narrow(name, CLASSES)
    images, _ = patterns(network, 5, seed=1)
    expected = predictions(network, network.initial(0), images)
    images[..., [0, 1, 3, 4], :] *= -100
    found = predictions(network, network.initial(0), images)
    assert np.array_equal(found[2], expected[2])
    assert not np.isclose(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]]).all()
