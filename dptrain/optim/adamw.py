"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.arrays.scalars import power
from dptrain.optim.optimizer import Optimizer, Parameter


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, as in PyTorch), with the gradient g and t = 1, 2, ... updates made.

    parameters *= 1 - lr * weight_decay
    m = beta1 * m + (1 - beta1) * g                the first moment
    v = beta2 * v + (1 - beta2) * g * g            the second moment
    parameters -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
    """

    slots = ("first_moment", "second_moment")
    default_lr = 0.001

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay)
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon > 0):
            raise ValueError(f"beta1 {beta1}, beta2 {beta2}, epsilon {epsilon}: expected 0 <= beta < 1 and epsilon > 0")
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self._step = aligned_zeros(self.layout.size)

    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        parameters, first, second = (vectors[name] for name in ("parameters", *self.slots))
        rate, scratch = self.rate(lr, step), self.scratch
        self.shrink(parameters, rate)
        first *= self.beta1
        first += np.multiply(gradient, 1 - self.beta1, out=scratch)
        second *= self.beta2
        np.multiply(gradient, gradient, out=gradient)
        second += np.multiply(gradient, 1 - self.beta2, out=scratch)
        np.sqrt(second, out=scratch)
        scratch *= 1 / math.sqrt(1 - power(self.beta2, step + 1))
        scratch += self.epsilon
        np.divide(first, scratch, out=self._step)
        self._step *= 1 / (1 - power(self.beta1, step + 1))
        parameters -= np.multiply(self._step, rate, out=scratch)
