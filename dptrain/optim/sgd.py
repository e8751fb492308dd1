"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.optim import WEIGHT_DECAY
from dptrain.optim.optimizer import Optimizer, Parameter


class SGD(Optimizer):
    """SGD with momentum, Nesterov's look-ahead and weight decay (Sutskever et al. 2013, as in PyTorch).

    g = gradient + weight_decay * parameters   the gradient itself if `decoupled`; then, before the last line,
                                               parameters *= 1 - lr * weight_decay (Loshchilov and Hutter 2019)
    v = momentum * v + g
    parameters -= lr * (g + momentum * v)      with Nesterov, else lr * v
    """

    slots = ("momentum",)

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        decoupled: bool = False,
        weight_decay: float = WEIGHT_DECAY,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay)
        self.momentum, self.nesterov, self.decoupled = momentum, nesterov, decoupled

    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        parameters, velocity = vectors["parameters"], vectors["momentum"]
        rate = self.rate(lr, step)
        if self.decoupled:
            self.shrink(parameters, rate)
        elif self.decay is not None:
            gradient += np.multiply(parameters, self.decay, out=self.scratch)
        descend(parameters, velocity, gradient, rate, self.scratch, momentum=self.momentum, nesterov=self.nesterov)


def descend(
    parameters: Array,
    velocity: Array,
    gradient: Array,
    rate: float | Array,
    scratch: Array,
    *,
    momentum: float,
    nesterov: bool,
) -> None:
    """Change the velocity by the gradient, then the parameters by the velocity. Overwrites the gradient."""
    velocity *= momentum
    velocity += gradient
    if nesterov:
        gradient += np.multiply(velocity, momentum, out=scratch)
    parameters -= np.multiply(gradient if nesterov else velocity, rate, out=scratch)
