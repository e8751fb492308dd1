"""A trained network that classifies images, without a data set."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.format import Checkpoint
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, evaluated
from dptrain.data.batches import Normalisation
from dptrain.errors import CheckpointError
from dptrain.nn.loss import softmax
from dptrain.nn.network import quiet
from dptrain.system.cache import DEFAULT_KIB
from dptrain.system.text import shown
from dptrain.training.architecture import Architecture
from dptrain.training.rebuild import network_of
from dptrain.training.resume import l2_kib_of

# A convnet-30, trained on CIFAR-10 with seed 0; without the optimizer's slots.
SHIPPED = Path(__file__).parents[1] / "models" / "cifar10-convnet.h5"


class Classifier:
    """The network of a checkpoint, read from `path`; `model` replaces the name of its architecture.

    It uses the averages of parameters and buffers, if the checkpoint has them, and its mean and deviation. Raises
    CheckpointError, or UsageError for a model of a user that `model` does not name.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, model: str | Architecture = "") -> None:
        origin = checkpoint.origin
        if not origin.mean:
            raise CheckpointError(
                f"{shown(path)} has no mean and deviation to normalise images with: it was written by an earlier "
                "dptrain; resume its run for a step to get one"
            )
        self.classes, self.image_shape, self.fit = origin.classes, origin.input_shape, origin.fit
        self._network = network_of(checkpoint, path, model)
        self._network.set_cache(l2_kib_of(origin) or DEFAULT_KIB)
        vectors = evaluated(checkpoint.state.vectors)
        self._normalise = Normalisation(origin)
        self._prepared = self._network.prepare_evaluation(vectors[PARAMETERS], vectors[BUFFERS], Workspace())
        self._workspace = Workspace()
        self._lock = threading.Lock()  # of the workspace and the prepared network

    def probabilities(self, images: NDArray[np.uint8]) -> Array:
        """The softmax probability of each class, float32 (N, K), for images uint8 (N, C, H, W).

        Several threads may call this; they compute one after the other.
        """
        with self._lock:
            return self._probabilities(images)

    @quiet
    def _probabilities(self, images: NDArray[np.uint8]) -> Array:
        found = np.empty((len(images), len(self.classes)), np.float32)
        for start in range(0, len(images), self._network.block):
            rows = slice(start, start + self._network.block)
            normalised = self._normalise(images[rows], self._workspace)
            logits = self._network.predict(self._prepared, normalised, self._workspace)
            found[rows] = softmax(logits, self._workspace)
        return found
