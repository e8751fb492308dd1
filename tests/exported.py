"""Checkpoints of networks with random values, and the logits that dptrain computes with them."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import tomli_w
from every_layer import LAYERS, build
from networks import narrow

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.format import Checkpoint, checkpoint_bytes
from dptrain.checkpoint.state import TrainingState, evaluated, vector_layouts
from dptrain.data.batches import Normalisation
from dptrain.nn.network import Network
from dptrain.nn.zoo import ARCHITECTURES

MEAN, STD, CLASSES = (0.3, 0.45, 0.6), (0.2, 0.25, 0.3), ("cat", "dog", 'a "bird"', "épée", "e")
LAYER_SHAPE = (3, 9, 8)


@cache
def networks() -> dict[str, Network]:
    """Every network of the zoo, narrow, and a small network around every layer."""
    count = len(CLASSES)
    of_layers = {layer: Network(build(LAYER_SHAPE, count, layer=layer), LAYER_SHAPE) for layer in LAYERS}
    return {**{name: narrow(name, count) for name in ARCHITECTURES}, **of_layers}


def checkpoint_of(network: Network, *, averaged: bool = False, **origin: Any) -> Checkpoint:
    """A checkpoint with the network's initial values, disturbed, and running averages that are those of some images.

    With `averaged`, its raw parameters are others than their averages.
    """
    layouts = vector_layouts(network, ("momentum",), averaged=averaged)
    vectors = {name: np.zeros(layout.size, np.float32) for name, layout in layouts.items()}
    fill(network, vectors, "average" if averaged else "parameters", "average_buffers" if averaged else "buffers", 0)
    if averaged:
        fill(network, vectors, "parameters", "buffers", 1)
    of = replace(
        checkpoints.ORIGIN,
        **{
            "config": tomli_w.dumps({"model": "convnet"}),
            "architecture": tuple(network.description()),
            "spec": network.spec(),
            "input_shape": network.input_shape,
            "classes": CLASSES[: network.classes] if network.classes <= len(CLASSES) else tuple(map(str, range(10))),
            "mean": MEAN,
            "std": STD,
            **origin,
        },
    )
    return Checkpoint(TrainingState(vectors), of, layouts)


def fill(network: Network, vectors: dict[str, Array], parameters: str, buffers: str, seed: int) -> None:
    """Write disturbed initial values of a seed to these vectors."""
    generator, count = np.random.default_rng(seed), 32
    initial = network.initial(seed)
    vectors[parameters][:] = initial["parameters"] + generator.normal(0, 0.03, network.layout.size)
    images = generator.normal(size=array_shape(network.input_shape, count)).astype(np.float32)
    gradient, statistics = (np.zeros(one.size, np.float32) for one in (network.layout, network.buffer_layout))
    prepared = network.prepare(vectors[parameters], initial["buffers"], Workspace())
    network.loss_and_grad(prepared, images, np.zeros(count, np.int64), gradient, Workspace(), statistics=statistics)
    vectors[buffers][:] = statistics / count


def write(path: Path, checkpoint: Checkpoint) -> Path:
    """The checkpoint as a file."""
    path.write_bytes(checkpoint_bytes(checkpoint.state, checkpoint.origin, checkpoint.layouts))
    return path


def pixels(network: Network, count: int) -> np.ndarray:
    """Images (N, C, H, W) of bytes."""
    return np.random.default_rng(1).integers(0, 256, (count, *network.input_shape), dtype=np.uint8)


def cifar10_images(archive: Path) -> np.ndarray:
    """The first 1,000 test images of CIFAR-10, (1000, 3, 32, 32) of bytes, by the description of its records."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("cifar-10-batches-bin/test_batch.bin")
        assert file is not None
        records = np.frombuffer(file.read(1000 * 3073), np.uint8).reshape(1000, 3073)
    return records[:, 1:].reshape(1000, 3, 32, 32)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Pixels 0..1, as exported networks take them."""
    return images.astype(np.float32) / np.float32(255)


def logits(network: Network, checkpoint: Checkpoint, images: np.ndarray) -> Array:
    """What `dptrain eval` computes for images (N, C, H, W) of bytes."""
    vectors, found = evaluated(checkpoint.state.vectors), []
    prepared = network.prepare_evaluation(vectors["parameters"], vectors["buffers"], Workspace())
    normalise: Any = Normalisation(checkpoint.origin)
    for start in range(0, len(images), 32):
        found.append(network.predict(prepared, normalise(images[start : start + 32], Workspace()), Workspace()).copy())
    return np.concatenate(found)
