"""Finds the first value that is not finite: its shard, rank and layer, or its tensor."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import numpy as np

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, Workspace
from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.data.batches import ShardBatches
from dptrain.errors import TrainingError
from dptrain.nn.finite import first_not_finite, not_finite_parts
from dptrain.nn.loss import CrossEntropy
from dptrain.nn.network import Network
from dptrain.parallel.communicator import Communicator, known_to_all

LOWER_LR = (
    "Try a lower --lr or more --warmup-steps in another --run-dir, from the start or with --resume from an earlier "
    "checkpoint"
)


def examine_shards(
    network: Network,
    loss: CrossEntropy,
    vectors: Mapping[str, Array],
    batches: Mapping[int, ShardBatches],
    epoch: int,
    step: int,
    parts: int = 1,
) -> dict[int, str]:
    """By shard of a rank, the first value of a step that is not finite, or "". The shards are computed again."""
    workspace = Workspace()
    return {
        shard: first_not_finite(
            network, vectors, *one.batch(epoch, step, workspace), workspace, one.draws(epoch, step), loss, parts
        )
        for shard, one in batches.items()
    }


def first_of_all_shards(found: Mapping[int, str], total: Array, layout: Layout, communicator: Communicator) -> str:
    """The first shard with a value that is not finite, and its rank, for a message; the same on every rank.

    `found` is the result of `examine_shards`; `total` (P,) is the summed gradient, examined if all shards are finite.
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
        "recomputed, every shard is finite: either the sum overflowed, or the error was not reproducible; "
        f"in the sum: {summed[0]}"
    )


def not_finite_error(loss: float, where: str, step: int, lr: float) -> TrainingError:
    what = "gradient is not finite" if np.isfinite(loss) else f"loss is {loss}"
    return TrainingError(
        f"step {step}: the {what}, at learning rate {lr:.6g}; {where}. The parameters were not changed and earlier "
        f"checkpoints are kept. {LOWER_LR}"
    )


def check_finite(state: TrainingState, layouts: Layouts, communicator: Communicator) -> None:
    """TrainingError, with the first tensor that is not finite. All ranks hold the same state.

    An update with finite gradients can overflow; without this check only the loss of the next step would show it.
    """
    if found := state.not_finite(layouts):
        message = (
            f"step {state.step}: after the update the {found}. Nothing of this step is saved and earlier checkpoints "
            f"are kept. {LOWER_LR}"
        )
        raise known_to_all(communicator, TrainingError(message))
