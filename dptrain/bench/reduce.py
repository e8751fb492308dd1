"""bench reduce: how long both reductions take, over lengths of the gradient."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.parallel.reduce.tree import REDUCTIONS

BYTES = 4  # of a float32


def measure_reductions(
    communicator: Communicator, *, lengths: list[int], shards: int, runs: int
) -> list[dict[str, Any]]:
    """For each length and reduction the median microseconds of the rank's own sums and of the exchange."""
    placement = Placement(shards, communicator.size)
    own = placement.shards_of(communicator.rank)
    rows = []
    for length in lengths:
        vectors = {shard: np.full(length, shard, np.float32) for shard in own}
        for name, kind in REDUCTIONS.items():
            reduction = kind(placement, communicator, length)
            sums, exchanges = [], []
            for _ in range(runs):
                communicator.barrier()
                started = time.perf_counter()
                partial = reduction.local_sums(vectors)
                summed = time.perf_counter()
                communicator.barrier()
                waited = time.perf_counter()
                reduction.exchange(partial)
                exchanges.append(time.perf_counter() - waited)
                sums.append(summed - started)
            slowest = max(communicator.allgather((statistics.median(exchanges), statistics.median(sums))))
            rows.append(
                {
                    "reduction": name,
                    "length": length,
                    "mebibytes": BYTES * length / 2**20,
                    "ranks": communicator.size,
                    "local_sums_us": 1e6 * slowest[1],
                    "exchange_us": 1e6 * slowest[0],
                }
            )
    return rows
