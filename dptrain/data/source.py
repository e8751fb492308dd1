"""Where the batches of a shard take their samples from: in memory (`Samples`), from a mapped file, or from a stream."""

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
