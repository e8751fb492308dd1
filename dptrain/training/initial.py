"""The state before the first step. Some layers take initial values from images of the training set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.state import Layouts, TrainingState, initial_state
from dptrain.data.batches import Normalisation
from dptrain.data.shard import Samples
from dptrain.errors import DptrainError, ModelError
from dptrain.parallel.communicator import Communicator, together
from dptrain.system.tracebacks import user_traceback
from dptrain.training.model_source import describe_error
from dptrain.training.session import Task

SAMPLE_IMAGES, SAMPLE_BYTES = 5000, 64 << 20  # at most
BLOCK = 250  # images that are normalised at a time


class SampleImages(Iterable[Array]):
    """Images (n, C, H, W) as normalised blocks (H, W, N, C)."""

    def __init__(self, images: NDArray[np.uint8], normalise: Normalisation) -> None:
        self.images, self.normalise = images, normalise

    def __iter__(self) -> Iterator[Array]:
        for start in range(0, len(self.images), BLOCK):
            yield self.normalise(self.images[start : start + BLOCK], Workspace())


def first_state(task: Task, layouts: Layouts, seed: int, values: Mapping[str, Array] | None = None) -> TrainingState:
    """The state before step 0, the same bits on any number of ranks: each rank computes it from the same images.

    `values` by full name, the same on all ranks, take the place of initial values.

    Every rank fails with a DptrainError or none does.
    """
    network, source, images = task.network, task.architecture.source, None
    if network.needs_images:
        task.communicator.activity.enter("computing initial values from images")
        images = SampleImages(
            sample_images(task.shards.train, task.manifest.shard_count, task.communicator), Normalisation(task.manifest)
        )
    with together(task.communicator):
        try:
            return initial_state(network, layouts, seed, images, values or {})
        except Exception as error:
            if not task.architecture.is_users or isinstance(error, DptrainError):
                raise
            what = f"--model {task.architecture.model}: its initial parameters: {describe_error(error, source)}"
            raise ModelError(what, user_traceback(error)) from error


def sample_images(shards: Mapping[int, Samples], count: int, communicator: Communicator) -> NDArray[np.uint8]:
    """The first images of each of all S = `count` shards, in the order of the shards, on every rank.

    `shards` are those of this rank. data_prep has shuffled the images of a shard.
    """
    wanted = min(SAMPLE_IMAGES, SAMPLE_BYTES // math.prod(shards[min(shards)].images.shape[1:]))
    ends = {shard: (shard + 1) * wanted // count - shard * wanted // count for shard in shards}
    parts = [shards[shard].images[: ends[shard]] for shard in sorted(shards)]
    return np.concatenate([part for rank in communicator.allgather(parts) for part in rank])
