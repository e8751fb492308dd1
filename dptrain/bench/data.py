"""bench data: images/s of packing, reading and batches, each measured separately."""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from dptrain.arrays.memory import Workspace
from dptrain.bench.workload import random_data, random_samples
from dptrain.config.train import TrainConfig
from dptrain.data.augmentation import BORDERS
from dptrain.data.batches import ShardBatches
from dptrain.data.loading import load_shards
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.pool import ShardWork, make_pool
from dptrain.training.session import make_batches

EPOCHS = 3


class BatchesWork(ShardWork[None]):
    """Makes all of a shard's batches of an epoch."""

    def __init__(self, batches: dict[int, ShardBatches], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def compute(self, shard: int, prepared: tuple[int], workspace: Workspace) -> None:
        (epoch,) = prepared
        for step in range(self.steps):
            self.batches[shard].batch(epoch, step, workspace)


def measure_batches(
    communicator: Communicator,
    shape: tuple[int, int, int],
    classes: int,
    *,
    shards: int,
    batch_size: int,
    threads: int,
    samples: int,
) -> dict[str, float]:
    """Images/s of all ranks together in making batches, for each augmentation."""
    steps, rates = max(1, samples // batch_size), {}
    manifest, data = random_data(communicator, shape, classes, shards, batch_size // shards * steps)
    for border in BORDERS:
        config = TrainConfig(batch_size=batch_size, crop=border, flip=border != "none")
        work, durations = BatchesWork(make_batches(config, manifest, data), steps), []
        with closing(make_pool(min(threads, len(work.batches)), [work], communicator)) as pool:
            for epoch in range(EPOCHS):
                communicator.barrier()
                started = time.perf_counter()
                pool.map(work, work.batches, epoch)
                communicator.barrier()
                durations.append(time.perf_counter() - started)
        rates[border] = steps * batch_size / statistics.median(durations)
    return rates


def measure_files(
    shape: tuple[int, int, int], classes: int, *, shards: int, threads: int, samples: int
) -> dict[str, float]:
    """Images/s of packing random images to shards on disk, and of checking and reading them again."""
    from dptrain.data_prep.pack import ImageData, LabelledImages, pack

    random = random_samples(shape, classes, 0, samples)
    images = LabelledImages(random.images, random.labels)
    labels = np.arange(min(samples, max(shards, classes))) % classes
    few = LabelledImages(random.images[: len(labels)], labels)
    data = ImageData("random", tuple(map(str, range(classes))), images, few, layout="channels_first")
    with tempfile.TemporaryDirectory(prefix="dptrain-bench-") as folder:
        started = time.perf_counter()
        manifest = pack(Path(folder) / "set", data, shards=shards)
        packed = time.perf_counter()
        load_shards(Path(folder) / "set", manifest, range(shards), threads)
        return {"packing": samples / (packed - started), "reading": samples / (time.perf_counter() - packed)}
