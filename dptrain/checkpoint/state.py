"""Everything that a training run is, between two steps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.nn.network import Network


@dataclass
class TrainingState:
    """Parameters and momentum, float32 (P,), and how far the run has come.

    `step` counts updates made, `samples_seen` samples used. The `epoch_` sums are over the steps made of the
    unfinished epoch. No rank count and no generator state: neither is needed to go on.
    """

    parameters: Array
    momentum: Array
    step: int = 0
    samples_seen: int = 0
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_samples: int = 0
    test_accuracy: float | None = None

    @property
    def params_sha256(self) -> str:
        """SHA-256 of the parameter vector, little-endian float32: equal if and only if the bits are."""
        return hashlib.sha256(self.parameters.astype("<f4", copy=False).tobytes()).hexdigest()

    @property
    def sha256(self) -> str:
        """SHA-256 of parameters and momentum together."""
        digest = hashlib.sha256(self.parameters.data)
        digest.update(self.momentum.data)
        return digest.hexdigest()


def initial_state(network: Network, seed: int) -> TrainingState:
    """Step 0: parameters from the seed, no momentum."""
    return TrainingState(network.initial(seed)["parameters"], aligned_zeros(network.layout.size))
