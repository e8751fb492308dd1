"""LARS: SGD whose steps are scaled by the norm of each weight, for large batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.optim import WEIGHT_DECAY
from dptrain.optim.optimizer import Optimizer, Parameter, norm
from dptrain.optim.sgd import descend


class LARS(Optimizer):
    """LARS (You, Gitman and Ginsburg 2017), for each tensor w with two or more axes:

    g = gradient + weight_decay * w
    ratio = trust * |w| / (|gradient| + weight_decay * |w|)      1 if |w| or |gradient| is 0
    v = momentum * v + ratio * g
    w -= lr * v

    The ratio of other tensors is 1. As in PyTorch's SGD, the learning rate is applied after the momentum.
    """

    slots = ("momentum",)
    default_lr = 1.0

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = WEIGHT_DECAY,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay)
        if not (0 <= momentum < 1 and trust > 0):
            raise ValueError(f"momentum is {momentum} and trust {trust}, expected 0 <= momentum < 1 and trust above 0")
        self.momentum, self.trust = momentum, trust

    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        parameters, velocity = vectors["parameters"], vectors["momentum"]
        for one, part in zip(self.parameters, self.layout.slices.values(), strict=True):
            g, scratch = gradient[part], self.scratch[part]
            decay = one.decay * self.weight_decay
            ratio = self._ratio(parameters[part], g, decay) if len(one.shape) > 1 else 1.0
            g += np.multiply(parameters[part], decay, out=scratch)
            g *= ratio
            rate = one.rate_at(lr, step)
            descend(parameters[part], velocity[part], g, rate, scratch, momentum=self.momentum, nesterov=False)

    def _ratio(self, weight: Array, gradient: Array, decay: float) -> float:
        size, slope = norm(weight), norm(gradient)
        return self.trust * size / (slope + decay * size) if size and slope else 1.0
