"""The sum of all shards' vectors by MPI's Allreduce, which may use the network's hardware.

MPI defines no order of summation: the bits depend on the number of ranks and on the library.
"""

from __future__ import annotations

from dptrain.arrays.memory import Array
from dptrain.parallel.reduce.reducer import Reducer


class MPIReducer(Reducer):
    """See the head of this file."""

    def _exchange(self, partial: list[Array]) -> Array:
        total = partial[0]
        for vector in partial[1:]:
            total += vector
        self._wait_for(self.communicator.allreduce, total)
        return total
