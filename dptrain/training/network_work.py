"""Tasks of shards that compute with the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.state import BUFFERS, PARAMETERS
from dptrain.nn.network import Network, quiet
from dptrain.parallel.pool import Result, ShardWork
from dptrain.parallel.processes import shared_zeros


class NetworkWork(ShardWork[Result]):
    """A task that needs the network's parameters (P,) and buffers (B,); forked workers share the memory of both."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.vectors = {
            PARAMETERS: shared_zeros(network.layout.size),
            BUFFERS: shared_zeros(network.buffer_layout.size),
        }
        self._workspace = Workspace()  # all shards only read it

    def load(self, vectors: Mapping[str, Array]) -> None:
        """Compute with these parameters and buffers from now on."""
        for name, shared in self.vectors.items():
            np.copyto(shared, vectors[name])

    @quiet
    def prepare(self, *arguments: Any) -> Any:
        """The prepared network, then the arguments."""
        return self.network.prepare(self.vectors[PARAMETERS], self.vectors[BUFFERS], self._workspace), *arguments
