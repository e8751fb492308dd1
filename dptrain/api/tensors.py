"""The tensors of a network, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dptrain.arrays.memory import Array
from dptrain.checkpoint.state import BUFFERS, PARAMETERS


class NamedTensors(ABC):
    """Has the parameters and buffers of a network."""

    @property
    def parameters(self) -> dict[str, Array]:
        """Copies of the parameters by name, such as "conv1.weight": float32, (O, C, KH, KW) or (O, F)."""
        return self._copies(PARAMETERS)

    @property
    def buffers(self) -> dict[str, Array]:
        """Copies of the buffers by name, such as "norm1.running_mean"."""
        return self._copies(BUFFERS)

    @abstractmethod
    def _copies(self, vector: str) -> dict[str, Array]:
        """Copies of the tensors of a vector of the state."""
