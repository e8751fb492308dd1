"""How ranks communicate: the interface, for one process alone. `dptrain.parallel.mpi` has that of several ranks."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dptrain.arrays.memory import Array
from dptrain.errors import DptrainError, PeerError
from dptrain.health.activity import Activity
from dptrain.system.failures import refused


class Communicator:
    """One process alone: every collective is the identity. `MPICommunicator` overrides them.

    Collectives must be called by all ranks in the same order.
    """

    rank = 0
    size = 1
    uses_mpi = False
    implementation = "no MPI"
    survives = False  # whether it continues without ranks that have died

    @functools.cached_property
    def world_ranks(self) -> Sequence[int]:
        """The numbers of these ranks in MPI_COMM_WORLD: the same as here until one has died."""
        return range(self.size)

    @functools.cached_property
    def activity(self) -> Activity:
        """What this rank does; in a collective it waits for others."""
        return Activity()

    def barrier(self) -> None:
        """Wait for all ranks."""

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """The value of rank `root`, on every rank."""
        return value

    def allgather(self, value: Any) -> list[Any]:
        """Every rank's value in rank order, on every rank."""
        return [value]

    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        """Send the next `send_counts[r]` numbers to each rank r, receive `receive_counts[r]` from each.

        This and the next two take contiguous float32 vectors, as long as the sum of their counts.
        """
        receive[...] = send

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        """Join slices of a vector, `counts[r]` numbers from rank r."""
        whole[...] = own

    def allreduce(self, vector: Array) -> None:
        """Sum over ranks in place, in an order that MPI chooses."""

    def confirm(self) -> None:
        """Return if all ranks arrive here alive, so that earlier collectives are complete; else RankLostError on all.

        To be called before the result of a collective on vectors is used for good. Those on objects call it themselves.
        """

    def survivors(self) -> Communicator:
        """After a RankLostError: the communicator of the ranks that are alive. Each of them must call this."""
        return self

    def abort(self, status: int) -> None:
        """End all other ranks at once, because this one cannot go on."""

    def end_job(self, status: int) -> None:
        """End all ranks and this process at once, from any of its threads."""
        if self.survives:  # the end of one process does not end the job
            self.abort(status)
        os._exit(status)


@contextmanager
def together(communicator: Communicator) -> Iterator[None]:
    """Within the block something may fail on some ranks, such as opening a file; then all ranks fail.

    The lowest rank that fails raises its own DptrainError, which is reported; the others raise a PeerError. A refusal
    of the operating system, such as too little memory, counts as a DptrainError (`refused`). Any other exception passes
    through at once. Do not call a collective in the block: a rank that has failed before would not take part.
    """
    own: DptrainError | None = None
    try:
        yield
    except Exception as error:
        own = error if isinstance(error, DptrainError) else refused(error)
        if own is None:
            raise
    errors = communicator.allgather(None if own is None else (str(own), own.status))
    failed = [rank for rank, error in enumerate(errors) if error is not None]
    if not failed:
        return
    if own is None or communicator.rank != failed[0]:
        raise PeerError(*errors[failed[0]])
    if len(failed) < communicator.size:
        own.args = (f"rank {communicator.world_ranks[communicator.rank]} on {socket.gethostname()}: {own}",)
    own.agreed = True
    raise own


def known_to_all(communicator: Communicator, error: DptrainError) -> DptrainError:
    """The error to raise when every rank has found the same one: rank 0 reports it, the others only end."""
    error.agreed = True
    return error if communicator.rank == 0 else PeerError(str(error), error.status)
