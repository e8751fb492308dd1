"""The interface to the samples of a shard. They may be in memory (`Samples`), in a mapped file, or in a stream."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dptrain.data.order import EpochKey


class Source(Protocol):
    """The n samples of one shard."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of each row, (n,)."""

    def order(self, key: EpochKey) -> NDArray[np.intp]:
        """Rows in the order of an epoch, (n,): every row once, and the same order for the same key."""

    def rows(self, indices: NDArray[np.intp] | slice) -> NDArray[np.uint8]:
        """The images of these rows, (m, C, H, W). The caller does not write to them."""
