"""Every rank must hold the same state to the bit. If one does not, the error names the rank and the first tensor."""

from __future__ import annotations

import hashlib
import socket

from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.errors import TrainingError
from dptrain.parallel.communicator import Communicator, known_to_all

Digests = dict[str, bytes]

NOWHERE = "a tensor that was not found again"  # failing memory may read differently the next time


def check_replicas(state: TrainingState, layouts: Layouts, communicator: Communicator) -> None:
    """TrainingError unless all ranks hold the same vectors to the bit.

    It names each rank that differs from the majority, and the first tensor that does.
    """
    hashes = communicator.allgather(state.digest())
    common = max(set(hashes), key=hashes.count)
    agreeing = hashes.count(common)
    if agreeing == len(hashes):
        return
    everyone = communicator.allgather((socket.gethostname(), digests(state, layouts)))
    hosts = [host for host, _ in everyone]
    ranks = [f"rank {rank} on {host}" for rank, host in zip(communicator.world_ranks, hosts, strict=True)]
    tensors = [own for _, own in everyone]
    if 2 * agreeing > len(hashes):
        right = tensors[hashes.index(common)]
        odd = [
            f"{ranks[rank]} differs from the others ({agreeing} of {len(hashes)} agree) from "
            f"{first_that_differs([right, tensors[rank]])} on"
            for rank, own in enumerate(hashes)
            if own != common
        ]
        found = ", ".join(odd)
    else:
        found = f"{', '.join(ranks)} differ from {first_that_differs(tensors)} on, and no majority says which are right"
    raise known_to_all(
        communicator,
        TrainingError(
            f"step {state.step}: {found}; suspect memory or library versions. Ranks are compared before each "
            "checkpoint, so the last one is sound: start again from it with --resume auto"
        ),
    )


def digests(state: TrainingState, layouts: Layouts) -> Digests:
    """SHA-256 of each tensor of each vector, in order."""
    return {name: hashlib.sha256(values.tobytes()).digest() for name, values in state.tensors(layouts)}


def first_that_differs(replicas: list[Digests]) -> str:
    """The first tensor that is not the same in all of them."""
    return next((name for name in replicas[0] if len({own[name] for own in replicas}) > 1), NOWHERE)
