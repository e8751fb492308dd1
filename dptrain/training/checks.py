"""Checks of the state before a checkpoint: the same on all ranks to the bit, and finite."""

from __future__ import annotations

import hashlib
import socket

from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.errors import TrainingError
from dptrain.nn.finite import not_finite
from dptrain.parallel.communicator import Communicator, known_to_all

Digests = dict[str, bytes]

LOWER_LR = (
    "Try a lower --lr or more --warmup-steps in another --run-dir, from the start or with --resume from an earlier "
    "checkpoint"
)
NOT_FOUND = "a tensor that was not found again"  # failing memory may read differently the next time


def check_replicas(state: TrainingState, layouts: Layouts, communicator: Communicator) -> None:
    """TrainingError unless all ranks hold the same vectors to the bit.

    It names each rank that differs from the majority, and the first tensor that does.
    """
    hashes = communicator.allgather(state.digest())
    if len(set(hashes)) == 1:
        return
    common = max(set(hashes), key=hashes.count)
    agreeing = f"{hashes.count(common)} of {len(hashes)} agree"
    digests = {name: hashlib.sha256(values.tobytes()).digest() for name, values in state.tensors(layouts)}
    everyone = communicator.allgather((socket.gethostname(), digests))
    ranks = [f"rank {rank} on {host}" for rank, (host, _) in zip(communicator.world_ranks, everyone, strict=True)]
    tensors = [digests for _, digests in everyone]
    if 2 * hashes.count(common) > len(hashes):
        right = tensors[hashes.index(common)]
        found = ", ".join(
            f"{rank} differs from the others ({agreeing}) from {first_difference([right, digests])} on"
            for rank, digests, digest in zip(ranks, tensors, hashes, strict=True)
            if digest != common
        )
    else:
        found = f"{', '.join(ranks)} differ from {first_difference(tensors)} on, and no majority says which are right"
    message = (
        f"step {state.step}: {found}; suspect memory or library versions. Ranks are compared before each checkpoint, "
        "so the last one is sound: start again from it with --resume auto"
    )
    raise known_to_all(communicator, TrainingError(message))


def first_difference(replicas: list[Digests]) -> str:
    """The first tensor that is not the same in all of them."""
    return next((name for name in replicas[0] if len({one[name] for one in replicas}) > 1), NOT_FOUND)


def check_finite(state: TrainingState, layouts: Layouts, communicator: Communicator) -> None:
    """TrainingError, with the first tensor that is not finite. All ranks hold the same state.

    An update with finite gradients can overflow; without this check only the loss of the next step would show it.
    """
    for name, values in state.tensors(layouts):
        if values.size and (what := not_finite(values)):
            message = (
                f"step {state.step}: after the update the {name} holds {what}. Nothing of this step is saved and "
                f"earlier checkpoints are kept. {LOWER_LR}"
            )
            raise known_to_all(communicator, TrainingError(message))
