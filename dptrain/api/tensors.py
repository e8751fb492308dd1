"""The tensors of a network, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array
from dptrain.checkpoint.state import BUFFERS, PARAMETERS
from dptrain.nn.layer import read_only


class NamedTensors(ABC):
    """Has the parameters and buffers of a network. Mappings and arrays are read-only copies, as they change nothing."""

    __slots__ = ()

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The parameters by name, such as "conv1.weight": float32, (O, C, KH, KW) or (O, F); read-only copies."""
        return self._copies(PARAMETERS)

    @property
    def buffers(self) -> Mapping[str, Array]:
        """The buffers by name, such as "norm1.running_mean"; read-only copies."""
        return self._copies(BUFFERS)

    def _copies(self, vector: str) -> Mapping[str, Array]:
        layout, values = self._vector(vector)
        return MappingProxyType(layout.views(read_only(values.copy())))

    @abstractmethod
    def _vector(self, name: str) -> tuple[Layout, Array]:
        """The layout and the values of a vector of the state."""
