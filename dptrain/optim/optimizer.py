"""The interface of all optimizers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from dptrain.arrays.layout import Layout, Shape
from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.optim import WEIGHT_DECAY
from dptrain.optim.schedule import Schedule

NORM_PART = 1 << 15  # numbers: their squares stay in the cache


@dataclass(frozen=True)
class Parameter:
    """What an optimizer knows about one tensor of the parameter vector (P,).

    decay       factor of the weight decay; 0 where none applies
    rate        factor of the learning rate; 0 for a tensor that is not trained
    schedule    the tensor's own learning rate by step, in place of the run's; from the step on where it is 0, the
                tensor is frozen
    groups      names that address the tensor, the most specific first: see dptrain.training.groups
    """

    name: str
    shape: Shape
    decay: float = 0.0
    rate: float = 1.0
    schedule: Schedule | None = None
    groups: tuple[str, ...] = ()

    def rate_at(self, lr: float, step: int) -> float:
        """The learning rate at a step, where the run has the learning rate `lr`."""
        return self.rate * (lr if self.schedule is None else self.schedule(step))

    def frozen(self, step: int) -> bool:
        """Whether the tensor is not trained at a step."""
        return self.rate == 0 or (self.schedule is not None and self.schedule(step) == 0)


class Ranks(Protocol):
    """What an optimizer that shares out its work over ranks needs: a part of dptrain.parallel's Communicator."""

    rank: int
    size: int

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        """Join slices of a vector, `counts[r]` numbers from rank r."""

    def confirm(self) -> None:
        """RankLostError on all ranks if one has died; else what was gathered before is valid."""


class OneRank:
    """No other ranks."""

    rank = 0
    size = 1

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        whole[...] = own

    def confirm(self) -> None:
        pass


class Optimizer(ABC):
    """Updates the parameters (P,) in place from the mean gradient of a global batch.

    Its state is named float32 vectors (P,), the `slots`, which begin with zeros and are part of every checkpoint. Its
    options are keyword arguments with default values; ValueError for one out of range.
    """

    slots: ClassVar[tuple[str, ...]]
    default_lr: ClassVar[float] = 0.05

    def __init__(self, parameters: Sequence[Parameter], *, weight_decay: float = WEIGHT_DECAY) -> None:
        """`parameters` are the tensors of the vector, in order."""
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}, expected at least 0")
        self.parameters, self.weight_decay = tuple(parameters), weight_decay
        self.ranks: Ranks = OneRank()
        self.layout = Layout({one.name: one.shape for one in parameters})
        decays = {one.name: one.decay * weight_decay for one in parameters}
        if (largest := max(decays.values(), default=0.0)) > float(np.finfo(np.float32).max):
            raise ValueError(f"the weight decay of a tensor is {largest}, more than a float32 number can be")
        self.decay = self.layout.expand(decays) if any(decays.values()) else None  # (P,)
        self.scratch = aligned_zeros(self.layout.size)
        plain = all(one.rate == 1 and one.schedule is None for one in parameters)
        self._rates = None if plain else aligned_zeros(self.layout.size)

    def join(self, ranks: Ranks) -> None:
        """Make the updates together with these ranks, which all have the same vectors and gradients."""
        self.ranks = ranks

    def rate(self, lr: float, step: int) -> float | Array:
        """The learning rate at a step: one for all parameters, or one for each, (P,).

        An update must not change a parameter whose learning rate is 0.
        """
        if self._rates is None:
            return lr
        for one, part in zip(self.parameters, self.layout.slices.values(), strict=True):
            self._rates[part] = one.rate_at(lr, step)
        return self._rates

    def shrink(self, parameters: Array, rate: float | Array) -> None:
        """Decoupled weight decay (Loshchilov and Hutter 2019): parameters *= 1 - rate * weight_decay."""
        if self.decay is not None:
            np.multiply(self.decay, rate, out=self.scratch)
            parameters *= np.subtract(1, self.scratch, out=self.scratch)

    def frozen(self, step: int) -> tuple[str, ...]:
        """The tensors that are not trained at a step. Their gradient is not needed."""
        return tuple(one.name for one in self.parameters if one.frozen(step))

    @abstractmethod
    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        """Make update `step` (0, 1, ...) of vectors["parameters"] and of the slots, on all ranks.

        `lr` is the run's learning rate; `rate` has each parameter's. `gradient` (P,) may be overwritten. RankLostError
        if a rank has died, on all ranks and before any vector changes.
        """


def norm(array: Array) -> float:
    """The Euclidean norm, summed in float64 in an order that depends on the size alone."""
    flat = array.reshape(-1)
    parts = (flat[start : start + NORM_PART] for start in range(0, flat.size, NORM_PART))
    return math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts))
