"""A training run without a data set: random images in memory, everything else as `dptrain train` has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dptrain.checkpoint.state import TrainingState, initial_state
from dptrain.data.batches import ShardBatches
from dptrain.data.manifest import Manifest, Provenance, ShardEntry
from dptrain.data.shard import Samples
from dptrain.data.transforms import make_transforms
from dptrain.errors import UsageError
from dptrain.nn.network import Network
from dptrain.optim import optimizer_class
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.placement import Placement
from dptrain.parallel.pool import ShardPool
from dptrain.parallel.processes import make_pool
from dptrain.training.architecture import build_network
from dptrain.training.step import GradientWork, StepOutcome, TrainingStep, make_reducer

SEED, LEARNING_RATE = 0, 0.001


@dataclass(frozen=True)
class Workload:
    """What a rank needs to make steps."""

    network: Network
    take_step: TrainingStep
    state: TrainingState
    pool: ShardPool
    steps_per_epoch: int

    def step(self) -> StepOutcome:
        """Make the next step, epoch after epoch."""
        epoch, step = divmod(self.state.step, self.steps_per_epoch)
        return self.take_step(self.state, epoch, step, LEARNING_RATE)


def random_manifest(shape: tuple[int, int, int], classes: int, shards: int, samples: int) -> Manifest:
    """The manifest of a set of random images, `samples` in each shard."""
    entries = tuple(ShardEntry("", 0, samples, "") for _ in range(shards))
    names = tuple(str(label) for label in range(classes))
    source = Provenance("random")
    channels = shape[0]
    splits = {"train": entries, "test": entries}
    return Manifest("random", names, shape, (0.5,) * channels, (0.29,) * channels, SEED, source, splits)


def random_samples(shape: tuple[int, int, int], classes: int, shard: int, samples: int) -> Samples:
    """Uniformly random images and labels."""
    generator = np.random.default_rng(shard)
    images = generator.integers(0, 256, (samples, *shape), dtype=np.uint8)
    return Samples(images, generator.integers(0, classes, samples), np.arange(samples))


def check_shards(communicator: Communicator, shards: int, batch_size: int) -> None:
    """UsageError unless the shards can be dealt to the ranks and the batch to the shards."""
    if batch_size % shards:
        raise UsageError(f"--batch-size {batch_size} is not a multiple of --shards {shards}")
    if communicator.size > shards:
        raise UsageError(f"{communicator.size} ranks, but --shards {shards}: expected at least one shard a rank")


def make_batches(
    communicator: Communicator,
    shape: tuple[int, int, int],
    classes: int,
    *,
    shards: int,
    batch_size: int,
    steps: int,
    border: str = "none",
) -> dict[int, ShardBatches]:
    """This rank's shards, with images for `steps` steps an epoch; UsageError when they cannot be dealt.

    With a `border` other than "none", images are flipped and cropped.
    """
    check_shards(communicator, shards, batch_size)
    size = batch_size // shards
    manifest = random_manifest(shape, classes, shards, size * steps)
    own = Placement(shards, communicator.size).shards_of(communicator.rank)
    return {
        shard: ShardBatches(
            random_samples(shape, classes, shard, size * steps),
            shard,
            manifest,
            size=size,
            seed=SEED,
            transforms=make_transforms(border, border != "none"),
        )
        for shard in own
    }


def make_workload(
    communicator: Communicator,
    *,
    model: str,
    model_options: dict[str, object],
    shape: tuple[int, int, int],
    classes: int,
    shards: int,
    batch_size: int,
    threads: int,
    reduction: str,
    steps_per_epoch: int = 8,
) -> Workload:
    """Network, optimizer, shards, threads and reduction with the defaults of `dptrain train`."""
    network = build_network(model, model_options, shape, classes)
    batches = make_batches(communicator, shape, classes, shards=shards, batch_size=batch_size, steps=steps_per_epoch)
    placement = Placement(shards, communicator.size)
    optimizer = optimizer_class("sgd")(network.decays())
    reducer = make_reducer(reduction, network, placement, communicator)
    gradients = GradientWork(network, batches, reducer)
    pool = make_pool(min(threads, len(batches)), [gradients], communicator)
    take_step = TrainingStep(gradients, optimizer, pool, communicator)
    state = initial_state(network, take_step.layouts, SEED)
    return Workload(network, take_step, state, pool, steps_per_epoch)
