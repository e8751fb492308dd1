"""Sums over shards by both reductions; rank 0 prints, for each case, the SHA-256 and the greatest relative error.

reduction_sums.py prints one JSON object: {"tree": {"S x length": [sha256, error], ...}, "mpi": {...}}.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from dptrain.config.train import REDUCTIONS
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.mpi import connect
from dptrain.parallel.placement import Placement
from dptrain.parallel.reduce import reducer_class
from dptrain.parallel.reduce.reducer import Lengths, Reducer

CASES = [(8, 1), (8, 5), (8, 60_364), (9, 1000), (13, 777)]


def shard_vector(shard: int, length: int, call: int) -> np.ndarray:
    """Numbers of very different size, so that another order of additions gives other bits."""
    generator = np.random.Generator(np.random.Philox(key=[shard, call]))
    return (generator.standard_normal(length) * 10.0 ** generator.integers(-3, 4, length)).astype(np.float32)


def reduce_once(reducer: Reducer, length: int, call: int) -> np.ndarray:
    reducer.begin()
    for shard, vector in reducer.vectors.items():
        vector[...] = shard_vector(shard, length, call)
    return reducer.finish().gradient


def greatest_error(total: np.ndarray, shards: int, call: int) -> float:
    """Relative to the sum of magnitudes."""
    every = np.stack([shard_vector(shard, len(total), call) for shard in range(shards)]).astype(np.float64)
    return float((np.abs(total - every.sum(axis=0)) / np.abs(every).sum(axis=0)).max())


def figures(kind: type[Reducer], communicator: Communicator) -> dict[str, tuple[str, float]]:
    found = {}
    for shards, length in CASES:
        reducer = kind(Placement(shards, communicator.size), communicator, Lengths(length, 0, 0, 0))
        reduce_once(reducer, length, call=0)  # its buffers are used again
        total = reduce_once(reducer, length, call=1)
        digest = hashlib.sha256(total.tobytes()).hexdigest()
        if set(communicator.allgather(digest)) != {digest}:
            raise SystemExit(f"{kind.__name__}: ranks have different sums of {shards} vectors of {length}")
        if communicator.rank == 0:
            found[f"{shards} x {length}"] = (digest, greatest_error(total, shards, call=1))
    return found


def main() -> None:
    communicator, _ = connect()
    found = {name: figures(reducer_class(name), communicator) for name in REDUCTIONS}
    if communicator.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
