"""The interface of all optimizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from dptrain.arrays.memory import Array, aligned_zeros


class Optimizer(ABC):
    """Updates the parameters (P,) in place from the mean gradient of a global batch.

    Its state is named float32 vectors (P,), the `slots`, which begin with zeros and are part of every checkpoint. Its
    options are keyword arguments with default values; ValueError for one out of range.
    """

    slots: ClassVar[tuple[str, ...]]
    default_lr: ClassVar[float] = 0.05

    def __init__(self, decays: Array, factors: Array | None = None, *, weight_decay: float = 5e-4) -> None:
        """Weight decay applies where `decays`, bool (P,), is True; `factors` (P,) multiply the learning rate.

        An update must not change a parameter without gradient and decay: it may be one that is not trained.
        """
        self.decay = np.where(decays, np.float32(weight_decay), np.float32(0)) if weight_decay else None
        self.factors = factors
        self.scratch = aligned_zeros(decays.size)

    def rate(self, lr: float) -> float | Array:
        """The learning rate, one for all parameters or one for each, (P,)."""
        return lr if self.factors is None else self.factors * np.float32(lr)

    @abstractmethod
    def update(self, vectors: Mapping[str, Array], gradient: Array, lr: float, step: int) -> None:
        """Make update `step` (0, 1, ...) of vectors["parameters"] and of the slots. `gradient` may be overwritten."""
