"""bench data: images/s of packing, reading and batches, each alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from dptrain.bench.workload import make_batches, random_samples
from dptrain.config import AUGMENTATIONS
from dptrain.data.batches import ShardBatches
from dptrain.data.format import Source
from dptrain.data.shards import load_shards
from dptrain.nn.workspace import Workspace
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.threads import ShardPool

EPOCHS = 3


def measure_batches(
    communicator: Communicator,
    *,
    shape: tuple[int, int, int],
    classes: int,
    shards: int,
    batch_size: int,
    threads: int,
    samples: int,
) -> dict[str, float]:
    """Images/s of all ranks together, for each augmentation: drawn, gathered, cast and normalised, but not used."""
    steps = max(1, samples // batch_size)
    rates = {}
    for augment in AUGMENTATIONS:
        batches = make_batches(
            communicator, shape, classes, shards=shards, batch_size=batch_size, steps=steps, augment=augment
        )
        pool = ShardPool(min(threads, len(batches)))
        durations = []
        for epoch in range(EPOCHS):
            communicator.barrier()
            started = time.perf_counter()
            pool.map(partial(_make_epoch, batches, epoch, steps), batches)
            communicator.barrier()
            durations.append(time.perf_counter() - started)
        pool.close()
        rates[augment] = steps * batch_size / statistics.median(durations)
    return rates


def _make_epoch(batches: dict[int, ShardBatches], epoch: int, steps: int, shard: int, workspace: Workspace) -> None:
    for step in range(steps):
        batches[shard].batch(epoch, step, workspace)


def measure_files(
    shape: tuple[int, int, int], classes: int, *, shards: int, threads: int, samples: int
) -> dict[str, float]:
    """Images/s of packing random images to shards on disk, and of checking and reading them again."""
    from data_prep.pack import ImageData, LabelledImages, pack

    random = random_samples(shape, classes, 0, samples)
    images = LabelledImages(random.images, random.labels)
    few = LabelledImages(random.images[:shards], random.labels[:shards])
    names = tuple(str(label) for label in range(classes))
    with tempfile.TemporaryDirectory(prefix="dptrain-bench-") as folder:
        out = Path(folder) / "set"
        started = time.perf_counter()
        manifest = pack(out, ImageData("random", names, Source("random", None, None, None), images, few), shards=shards)
        packed = time.perf_counter()
        load_shards(out, manifest, range(shards), threads)
        read = time.perf_counter()
    return {"packing": samples / (packed - started), "reading": samples / (read - packed)}
