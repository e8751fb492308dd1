"""After the death of ranks: who remains, and the run that those have in common."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from dptrain.checkpoint.state import TrainingState
from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.parallel.communicator import Communicator, known_to_all


def check_elastic(config: TrainConfig, communicator: Communicator) -> None:
    """UsageError if --elastic asks for what this MPI cannot do."""
    if config.elastic and not communicator.survives:
        error = UsageError(
            f"--elastic needs ULFM, which {communicator.implementation} does not have here: start with mpirun "
            "--with-ft ulfm of Open MPI 5 or later, or with dptrain launch --elastic. Elsewhere, dptrain launch "
            "--max-restarts K restarts a job from its last checkpoint"
        )
        raise known_to_all(communicator, error)


class Losses:
    """The ranks that have died since the last step, by their numbers at the start, and when that was noticed."""

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.noticed = 0.0

    def survivors(self, communicator: Communicator) -> Communicator:
        """After a RankLostError, on all ranks that live: their communicator."""
        if not self.ranks:
            self.noticed = time.perf_counter()
        fewer = communicator.survivors()
        self.ranks += sorted(set(communicator.world_ranks) - set(fewer.world_ranks))
        return fewer


class Common(NamedTuple):
    """What all ranks of a run know: its state, its folder, and the checkpoint that it was resumed from."""

    state: TrainingState
    folder: Path
    resumed: Path | None


def common_run(communicator: Communicator, begun: Common | None) -> Common | None:
    """The run of those ranks that have begun it, on every rank; None if no rank has.

    A step is made on all ranks or on none (`Communicator.confirm`), so their states are the same to the bit. Other
    ranks may have lost the run before it began for them, and receive it here.
    """
    ranks = communicator.allgather(begun is not None)
    if not any(ranks):
        return None
    root = ranks.index(True)
    found: Common = communicator.broadcast(begun if communicator.rank == root else None, root)
    state = found.state.copy()  # what MPI received is not aligned
    state.progress.test_accuracy = None  # the only rank that knew it may have died before it was saved
    return found._replace(state=state)
