"""bench unconnected: what synchronization costs, against ranks that train alone.

Both train in the same processes, in stretches of a few steps that alternate, so that a drift of the machine's speed
affects both. In one stretch the ranks make steps together; in the next each makes steps of its own, with its share of
the shards and of the batch, and without a message to the others.

A step that all ranks make together takes as long as on the slowest of them, also where messages cost nothing. The
limit of the ratio that follows from this is measured too, by the steps that the ranks make alone.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dptrain.bench.step import WARM_UP, take_steps
from dptrain.bench.workload import make_workload
from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.parallel.communicator import Communicator, together


def measure_unconnected(
    config: TrainConfig,
    communicator: Communicator,
    shape: tuple[int, int, int],
    classes: int,
    *,
    shards: int,
    steps: int,
    runs: int,
) -> dict[str, Any]:
    """Medians over `runs` pairs of stretches of `steps` steps: images/s of each kind, their ratio, and its limit."""
    ranks = communicator.size
    with together(communicator):
        if ranks == 1:
            raise UsageError("bench unconnected compares ranks: start it with mpirun -n 2 or dptrain launch -n 2")
        if shards % ranks:
            raise UsageError(f"--shards {shards} is not a multiple of the {ranks} ranks: they could not be compared")
    config = replace(config, threads=config.threads or 1)
    connected = make_workload(config, communicator, shape, classes, shards)
    share = replace(config, batch_size=config.batch_size // ranks)
    alone = make_workload(share, Communicator(), shape, classes, shards // ranks)
    for engine, state in (connected, alone):
        take_steps(engine, state, WARM_UP)
    rates: dict[str, list[float]] = {"connected": [], "unconnected": []}
    limits = []
    for _ in range(runs):
        for name, (engine, state) in (("connected", connected), ("unconnected", alone)):
            communicator.barrier()
            started = time.perf_counter()
            _, durations = take_steps(engine, state, steps)
            seconds = communicator.allgather(time.perf_counter() - started)
            rates[name].append(sum(share.batch_size * steps / one for one in seconds))
        limits.append(limit_by_the_slowest(communicator.allgather(durations)))
    ratios = [together / apart for together, apart in zip(rates["connected"], rates["unconnected"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if runs > 1 else (ratios[0],) * 3
    return {
        "connected_images_per_second": statistics.median(rates["connected"]),
        "unconnected_images_per_second": statistics.median(rates["unconnected"]),
        "ratio": statistics.median(ratios),
        "middle_half": [low, high],
        "limit_by_the_slowest_rank": statistics.median(limits),
        "ranks": ranks,
        "batch_size": config.batch_size,
        "steps": steps,
        "runs": runs,
    }


def limit_by_the_slowest(durations: Sequence[Sequence[float]]) -> float:
    """Images/s if every step took as long as on the slowest rank, over the sum of the ranks' own; at most 1.

    `durations` are those of the steps that each rank makes alone, by rank.
    """
    slowest = math.fsum(map(max, zip(*durations, strict=True)))
    return len(durations) / slowest / math.fsum(1 / math.fsum(of_rank) for of_rank in durations)
