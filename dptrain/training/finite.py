"""Where a step or a state is first not finite: the shard, its rank and the layer, or the tensor."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import numpy as np

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.data.batches import ShardBatches
from dptrain.errors import TrainingError
from dptrain.nn.finite import first_not_finite, not_finite, not_finite_parts
from dptrain.nn.network import Network
from dptrain.parallel.communicator import Communicator, known_to_all

ADVICE = (
    "Try a lower --lr or more --warmup-steps in another --run-dir, from the start or by --resume from a checkpoint of "
    "before it went wrong"
)


def examine_shards(
    network: Network, vectors: Mapping[str, Array], batches: Mapping[int, ShardBatches], epoch: int, step: int
) -> dict[int, str]:
    """In words, for each of a rank's shards, what is first not finite in its microbatch of a step; "" if all is finite.

    This process computes the shards again: the step has overwritten their vectors by sums.
    """
    workspace = Workspace()
    return {
        shard: first_not_finite(network, vectors, *own.batch(epoch, step, workspace), workspace, own.draws(epoch, step))
        for shard, own in batches.items()
    }


def first_of_all_shards(found: Mapping[int, str], total: Array, layout: Layout, communicator: Communicator) -> str:
    """A sentence, the same on every rank, on the lowest shard in which something is not finite, and its rank.

    `found` is from `examine_shards` for this rank's shards; `total` (P,) is the summed gradient, for the case that
    every shard alone is finite.
    """
    everyone = communicator.allgather((socket.gethostname(), dict(found)))
    broken = [
        f"shard {shard} (rank {rank} on {host}): {what}"
        for rank, (host, shards) in zip(communicator.world_ranks, everyone, strict=True)
        for shard, what in shards.items()
        if what
    ]
    if broken:  # in the order of shards, as ranks hold contiguous blocks
        return f"in {len(broken)} of {sum(len(shards) for _, shards in everyone)} shards, the first is {broken[0]}"
    summed = [f"the gradient of {part}" for part in not_finite_parts(layout, total)] or ["only the loss is not finite"]
    return (
        "computed again, every shard alone is finite: either their sum overflowed or it did not happen again; "
        f"in the sum {summed[0]}"
    )


def not_finite_error(loss: float, where: str, step: int, lr: float) -> TrainingError:
    """The error for a step (1, 2, ...) whose summed loss or gradient is not finite; `where` is a sentence on it."""
    what = "gradient is not finite" if np.isfinite(loss) else f"loss is {loss}"
    return TrainingError(
        f"step {step}: the {what}, at learning rate {lr:.6g}; {where}. The parameters were not changed and earlier "
        f"checkpoints are kept. {ADVICE}"
    )


def check_finite(state: TrainingState, layouts: Layouts, communicator: Communicator) -> None:
    """TrainingError naming the first tensor that is not finite, before a checkpoint; all ranks hold the same state.

    An update can overflow from finite gradients, which otherwise only the next step's loss would show.
    """
    for name, values in state.tensors(layouts):
        if values.size and (what := not_finite(values)):
            error = TrainingError(
                f"step {state.step}: after the update the {name} holds {what}. Nothing of this step is saved and "
                f"earlier checkpoints are kept. {ADVICE}"
            )
            raise known_to_all(communicator, error)
