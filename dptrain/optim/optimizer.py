"""What every optimizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from dptrain.arrays.memory import Array, aligned_zeros


class Optimizer(ABC):
    """Updates the parameters (P,) in place from the mean gradient of a global batch.

    What it keeps from step to step lies in named float32 vectors (P,), its `slots`, which begin with zeros and are part
    of every checkpoint. It keeps nothing else. A subclass takes its options as keyword arguments with default values,
    and raises ValueError for a value that cannot be used.
    """

    slots: ClassVar[tuple[str, ...]]
    default_lr: ClassVar[float] = 0.05

    def __init__(self, decays: Array, factors: Array | None = None, *, weight_decay: float = 5e-4) -> None:
        """Weight decay applies where `decays`, bool (P,), is True; `factors` (P,) multiply the learning rate.

        A parameter that is not trained has a gradient of 0 and no decay; the update must then leave it as it is.
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
