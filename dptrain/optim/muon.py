"""Muon: steps of momentum with orthogonal matrices for the weights of hidden layers, SGD for all other parameters.

Newton-Schulz iterations make the step of a matrix nearly orthogonal. They are the only expensive part of an update. So
the matrices are shared out over the ranks: one rank computes a matrix, then all ranks gather the results. The share
depends on the shapes and the number of ranks alone, and no bit depends on who computes a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dptrain.arrays.memory import Array, Workspace, aligned_zeros
from dptrain.optim import WEIGHT_DECAY
from dptrain.optim.optimizer import Optimizer, Parameter, Ranks, norm
from dptrain.optim.sgd import descend

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # the slope at 0 is the largest with which singular values stay near 1
EPSILON = 1e-7
OTHERS = {"first", "head", "norm"}  # groups whose parameters are trained by SGD


class Muon(Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), as in airbench94_muon of cifar10-airbench.

    For the weight W of each hidden layer, as a matrix (O, all other axes) with O output channels or features:

    v = momentum * v + gradient
    g = gradient + momentum * v                with Nesterov, else v
    W *= sqrt(O) / |W|                         if `normalise`
    W *= 1 - lr * weight_decay                 if not; and the step below is times max(1, rows / columns)^0.5
    W -= lr * orthogonal(g)                    `steps` iterations of Newton and Schulz

    Biases and the parameters of the first layer, the last layer and normalisations are trained by Nesterov SGD with the
    momentum `sgd_momentum` and coupled weight decay.
    """

    slots = ("momentum",)
    default_lr = 0.05

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        steps: int = 3,
        normalise: bool = True,
        sgd_momentum: float = 0.85,
        weight_decay: float = WEIGHT_DECAY,
    ) -> None:
        super().__init__(parameters, weight_decay=weight_decay)
        if not (0 <= momentum < 1 and 0 <= sgd_momentum < 1 and isinstance(steps, int) and steps >= 1):
            raise ValueError(
                f"momentum is {momentum}, sgd_momentum {sgd_momentum}, steps {steps}: expected 0 <= momentum < 1 and "
                "at least one step"
            )
        self.momentum, self.nesterov, self.steps = momentum, nesterov, steps
        self.normalise, self.sgd_momentum = normalise, sgd_momentum
        self.matrices = {one.name: _matrix_shape(one) for one in parameters if is_hidden_weight(one)}
        self.workspace = Workspace()
        self.join(self.ranks)

    def join(self, ranks: Ranks) -> None:
        super().join(ranks)
        self.owners = shared_out(self.matrices, ranks.size)
        self.counts = [sum(math.prod(self.matrices[name]) for name in owned) for owned in self.owners]
        self._own, self._whole = aligned_zeros(self.counts[ranks.rank]), aligned_zeros(sum(self.counts))

    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        parameters, velocity = vectors["parameters"], vectors["momentum"]
        frozen = self.frozen(step)
        for name, direction in self._places(self._own, self.owners[self.ranks.rank]):
            if name not in frozen:
                part = self.layout.slices[name]
                ahead = self._ahead(velocity[part], gradient[part]).reshape(self.matrices[name])
                direction[...] = orthogonal(ahead, self.steps, self.workspace)
        if len(self._whole):
            self.ranks.allgather_slices(self._own, self._whole, self.counts)
            self.ranks.confirm()  # before anything changes: a step is made on all ranks or on none
        steps = dict(self._places(self._whole, [name for owned in self.owners for name in owned]))
        for one, part in zip(self.parameters, self.layout.slices.values(), strict=True):
            values, v, g, scratch = parameters[part], velocity[part], gradient[part], self.scratch[part]
            rate = one.rate_at(lr, step)
            if one.name in frozen:
                continue
            if one.name not in self.matrices:
                if one.decay:
                    g += np.multiply(values, one.decay * self.weight_decay, out=scratch)
                descend(values, v, g, rate, scratch, momentum=self.sgd_momentum, nesterov=True)
                continue
            v *= self.momentum
            v += g
            rows, columns = self.matrices[one.name]
            if self.normalise:
                values *= math.sqrt(rows) / max(norm(values), EPSILON)
            else:
                values *= 1 - rate * one.decay * self.weight_decay
                rate *= math.sqrt(max(1, rows / columns))
            values -= np.multiply(steps[one.name].reshape(-1), rate, out=scratch)

    def _ahead(self, velocity: Array, gradient: Array) -> Array:
        """The direction from the next velocity, which is not stored yet."""
        following = velocity * self.momentum
        following += gradient
        return gradient + following * self.momentum if self.nesterov else following

    def _places(self, flat: Array, names: Sequence[str]) -> Iterator[tuple[str, Array]]:
        """Each matrix's place in `flat`, which holds matrices one after the other."""
        start = 0
        for name in names:
            end = start + math.prod(self.matrices[name])
            yield name, flat[start:end].reshape(self.matrices[name])
            start = end


def is_hidden_weight(parameter: Parameter) -> bool:
    """Whether a parameter is trained as a matrix."""
    return len(parameter.shape) > 1 and parameter.rate != 0 and not OTHERS & set(parameter.groups)


def _matrix_shape(parameter: Parameter) -> tuple[int, int]:
    rows, *others = parameter.shape
    return rows, math.prod(others)


def shared_out(matrices: Mapping[str, tuple[int, int]], ranks: int) -> list[list[str]]:
    """For each rank the matrices that it computes: the longest first, each to the rank with the least work so far."""

    def work(name: str) -> int:
        small, large = sorted(matrices[name])
        return small * small * (2 * large + small)  # the products of an iteration

    owned: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(matrices, key=lambda name: (-work(name), name)):
        rank = loads.index(min(loads))
        owned[rank].append(name)
        loads[rank] += work(name)
    return owned


def orthogonal(matrix: Array, steps: int, workspace: Workspace) -> Array:
    """Nearly U V' for a matrix (rows, columns) = U S V': singular values far from 0 become 0.7 to 1.2 after some steps.

    Each step is the polynomial a x + b x^3 + c x^5 of the singular values; all products have rows or columns,
    whichever are fewer, on one side. The result is valid until the workspace is used again.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    small = wide.shape[0]
    x, product = (workspace.array("muon", purpose, wide.shape) for purpose in ("x", "product"))
    gram, square = (workspace.array("muon", purpose, (small, small)) for purpose in ("gram", "square"))
    np.multiply(wide, 1 / (norm(matrix) + EPSILON), out=x)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        np.matmul(x, x.T, out=gram)
        np.matmul(gram, gram, out=square)
        square *= c
        gram *= b
        square += gram
        np.matmul(square, x, out=product)
        x *= a
        x += product
    return x if wide is matrix else x.T
