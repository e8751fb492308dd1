"""Stochastic gradient descent on the flat parameter vector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dptrain.arrays.memory import Array, aligned_zeros


class SGD:
    """SGD with momentum, Nesterov's look-ahead and weight decay, in place (Sutskever et al. 2013, as in PyTorch).

    `decays`, bool (P,), says which parameters weight decay applies to.

    g = gradient + weight_decay * parameters
    v = momentum * v + g
    parameters -= lr * (g + momentum * v)      with Nesterov, else lr * v
    """

    slots = ("momentum",)

    def __init__(self, decays: Array, *, momentum: float, nesterov: bool, weight_decay: float) -> None:
        self.momentum = momentum
        self.nesterov = nesterov
        self.decay = np.where(decays, np.float32(weight_decay), np.float32(0)) if weight_decay else None
        self._scratch = aligned_zeros(decays.size)

    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        """One step; all vectors float32 (P,). The parameters, the momentum and the gradient are overwritten."""
        parameters, velocity = vectors["parameters"], vectors["momentum"]
        if self.decay is not None:
            gradient += np.multiply(parameters, self.decay, out=self._scratch)
        velocity *= self.momentum
        velocity += gradient
        if self.nesterov:
            gradient += np.multiply(velocity, self.momentum, out=self._scratch)
            direction = gradient
        else:
            direction = velocity
        parameters -= np.multiply(direction, lr, out=self._scratch)
