"""bench reduce: how long each reduction takes, over lengths of the gradient."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

from dptrain.config.train import REDUCTIONS
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.parallel.reduce import reducer_class
from dptrain.parallel.reduce.reducer import Lengths


def measure_reductions(
    communicator: Communicator, *, lengths: list[int], shards: int, runs: int
) -> list[dict[str, Any]]:
    """Median microseconds of additions and copies, and of MPI calls, on the slowest rank, by length and reduction."""
    rows = []
    for length, name in itertools.product(lengths, REDUCTIONS):
        reducer = reducer_class(name)(Placement(shards, communicator.size), communicator, Lengths(length, 0, 0, 0))
        sums, exchanges = [], []
        for _ in range(runs):
            for shard, vector in reducer.vectors.items():
                vector.fill(shard)
            reducer.begin()
            communicator.barrier()
            started = time.perf_counter()
            reducer.finish()
            sums.append(time.perf_counter() - started - reducer.waited)
            exchanges.append(reducer.waited)
        exchange, local = max(communicator.allgather((statistics.median(exchanges), statistics.median(sums))))
        rows.append(
            {
                "reduction": name,
                "length": length,
                "mebibytes": 4 * length / 2**20,
                "ranks": communicator.size,
                "local_sums_us": 1e6 * local,
                "exchange_us": 1e6 * exchange,
            }
        )
    return rows
