"""A training run on random images in memory, with the engine of `dptrain train`."""

from __future__ import annotations

import numpy as np

from dptrain.checkpoint.state import TrainingState
from dptrain.config.train import TrainConfig
from dptrain.data.loading import LocalShards
from dptrain.data.manifest import REQUIRED, Manifest, Provenance, ShardEntry
from dptrain.data.shard import Samples
from dptrain.errors import UsageError
from dptrain.parallel.communicator import Communicator, together
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import fair_threads
from dptrain.training.agreement import numeric_environment
from dptrain.training.architecture import build_network, find_architecture
from dptrain.training.initial import first_state
from dptrain.training.session import Engine, Task, assemble, choose_l2_kib, make_batches
from dptrain.training.update import make_update

STEPS_PER_EPOCH = 8


def check_shards(communicator: Communicator, shards: int, batch_size: int) -> None:
    """UsageError unless each rank gets a shard, and the batch size is a multiple of the shards."""
    if batch_size % shards:
        raise UsageError(f"--batch-size {batch_size} is not a multiple of --shards {shards}")
    if communicator.size > shards:
        raise UsageError(f"{communicator.size} ranks, but --shards {shards}: expected at least one shard a rank")


def random_samples(shape: tuple[int, int, int], classes: int, shard: int, samples: int) -> Samples:
    """Uniformly random images and labels."""
    generator = np.random.default_rng(shard)
    images = generator.integers(0, 256, (samples, *shape), dtype=np.uint8)
    return Samples(images, generator.integers(0, classes, samples), np.arange(samples))


def random_data(
    communicator: Communicator, shape: tuple[int, int, int], classes: int, shards: int, samples: int
) -> tuple[Manifest, LocalShards]:
    """A data set of random images, `samples` in each shard, and this rank's training shards."""
    names, mean, std = tuple(map(str, range(classes))), (0.5,) * shape[0], (0.29,) * shape[0]
    splits = dict.fromkeys(REQUIRED, (ShardEntry("", 0, samples, ""),) * shards)
    manifest = Manifest("random", names, shape, mean, std, 0, Provenance("random"), splits)
    numbers = Placement(shards, communicator.size).shards_of(communicator.rank)
    return manifest, LocalShards({shard: random_samples(shape, classes, shard, samples) for shard in numbers}, {}, {})


def make_workload(
    config: TrainConfig, communicator: Communicator, shape: tuple[int, int, int], classes: int, shards: int
) -> tuple[Engine, TrainingState]:
    """The engine and the initial state of a configuration; every rank fails with a DptrainError or none does."""
    threads = config.threads or fair_threads(communicator)
    l2_kib = communicator.broadcast(choose_l2_kib(config))
    with together(communicator):
        check_shards(communicator, shards, config.batch_size)
        environment, architecture = numeric_environment(config), find_architecture(config.model)
        network = build_network(architecture, config.model_options, shape, classes)
        network.set_cache(l2_kib)
        update = make_update(config, network, STEPS_PER_EPOCH)
    manifest, data = random_data(communicator, shape, classes, shards, config.batch_size // shards * STEPS_PER_EPOCH)
    placement = Placement(shards, communicator.size)
    task = Task(communicator, manifest, placement, data, architecture, network, threads, environment)
    engine = assemble(config, task, make_batches(config, manifest, data), update)
    return engine, first_state(engine, engine.take_step.layouts, config.seed)
