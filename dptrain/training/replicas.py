"""Every rank's copy of the state must be the same to the bit; where one is not, which and from what tensor on."""

from __future__ import annotations

import hashlib
import socket

from dptrain.arrays.layout import Layout
from dptrain.checkpoint.state import TrainingState
from dptrain.errors import TrainingError
from dptrain.parallel.communicator import Communicator, known_to_all

Digests = dict[str, bytes]

# Failing memory may give two answers to one question.
NOWHERE = "a place that was not found again"


def check_replicas(state: TrainingState, layout: Layout, communicator: Communicator) -> None:
    """All ranks must hold the same parameters and momentum to the bit; TrainingError naming those that do not.

    Of each it names the first tensor that differs from the majority's, momentum after all parameters.
    """
    hashes = communicator.allgather(state.sha256)
    common = max(set(hashes), key=hashes.count)
    agreeing = hashes.count(common)
    if agreeing == len(hashes):
        return
    everyone = communicator.allgather((socket.gethostname(), digests(state, layout)))
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


def digests(state: TrainingState, layout: Layout) -> Digests:
    """SHA-256 of each tensor by name, in the order of the layout, the parameters before the momentum."""
    vectors = {"": state.parameters, "momentum of ": state.momentum}
    return {
        prefix + name: hashlib.sha256(vector[part].tobytes()).digest()
        for prefix, vector in vectors.items()
        for name, part in layout.slices.items()
    }


def first_that_differs(replicas: list[Digests]) -> str:
    """The first tensor that is not the same in all of them."""
    return next((name for name in replicas[0] if len({own[name] for own in replicas}) > 1), NOWHERE)
