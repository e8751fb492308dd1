"""Microseconds an image of each transform of augmentation, and of a training step of the default network.

    python tests/benchmarks/augmentation.py [--microbatch 16] [--epochs 20]

Images are random, 3 x 32 x 32. A transform's time is that of the batches of an epoch with it, less that without it,
random words included. It is processor time of one thread, so other programs change it little; the least of all epochs
is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from typing import Any

from dptrain.system.blas import request_one_thread

request_one_thread()

from dptrain.arrays.memory import Workspace  # noqa: E402
from dptrain.bench.workload import STEPS_PER_EPOCH, make_workload, random_data  # noqa: E402
from dptrain.config.train import TrainConfig  # noqa: E402
from dptrain.parallel.communicator import Communicator  # noqa: E402
from dptrain.training.session import make_batches  # noqa: E402

SHAPE, SAMPLES = (3, 32, 32), 512
TRANSFORMS: list[dict[str, Any]] = [
    {"flip": True},
    {"flip": True, "alternating_flip": True},
    {"crop": "zero"},
    {"crop": "reflect"},
    {"resized_crop": 0.25},
    {"brightness": 0.2},
    {"contrast": 0.2},
    {"cutout": 8},
]


def batch_times(microbatch: int, epochs: int) -> list[float]:
    """Microseconds an image of the batches of one shard: without augmentation, then with each transform.

    They take turns, so that all of them meet the same disturbances.
    """
    manifest, data = random_data(Communicator(), SHAPE, 10, 1, SAMPLES)
    every = [
        batches
        for keys in ({}, *TRANSFORMS)
        for batches in make_batches(TrainConfig(batch_size=microbatch, **keys), manifest, data).values()
    ]
    least, workspace = [float("inf")] * len(every), Workspace()
    for epoch in range(epochs):
        for number, batches in enumerate(every):
            started = time.process_time()
            for step in range(SAMPLES // microbatch):
                batches.batch(epoch, step, workspace)
            least[number] = min(least[number], time.process_time() - started)
    return [1e6 * seconds / SAMPLES for seconds in least]


def step_time(microbatch: int, epochs: int) -> float:
    """Microseconds an image of a training step of the default network, its batch included."""
    config = TrainConfig(batch_size=8 * microbatch, threads=1)
    engine, state = make_workload(config, Communicator(), SHAPE, 10, 8)
    times = []
    with closing(engine.pool):
        for number in range(epochs):
            started = time.process_time()
            engine.take_step(state, *divmod(number, STEPS_PER_EPOCH), 0.001)
            times.append(time.process_time() - started)
    return min(times) / config.batch_size * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    step = step_time(options.microbatch, options.epochs)
    print(f"a training step of the default network  {step:7.1f} us an image")
    plain, *others = batch_times(options.microbatch, options.epochs)
    print(f"a batch without augmentation            {plain:7.1f} us  {100 * plain / step:5.1f} % of a step")
    for keys, time_with in zip(TRANSFORMS, others, strict=True):
        more = time_with - plain
        name = ", ".join(f"{key} = {value}" for key, value in keys.items())
        print(f"{name:38}  {more:7.1f} us  {100 * more / step:5.1f} % of a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
