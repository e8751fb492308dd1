"""How ranks communicate: the interface, and its implementation for one process."""

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
from dptrain.health.recorder import NO_RECORDER, Recorder
from dptrain.system.failures import refused


class Communicator:
    """One process alone: every collective is the identity. All ranks must call collectives in the same order."""

    rank = 0
    size = 1
    uses_mpi = False
    implementation = "no MPI"
    survives = False  # whether it continues without ranks that have died
    recorder: Recorder = NO_RECORDER  # of this rank's timeline

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
        return self.allgather(value if self.rank == root else None)[root]

    def allgather(self, value: Any) -> list[Any]:
        """Every rank's value in rank order, on every rank."""
        return [value]

    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        """Send the next `send_counts[r]` numbers to each rank r, receive `receive_counts[r]` from each.

        This and the next two methods take contiguous float32 vectors.
        """
        receive[...] = send

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        """Join slices of a vector, `counts[r]` numbers from rank r."""
        whole[...] = own

    def allreduce(self, vector: Array) -> None:
        """Sum over ranks in place, in an order that MPI chooses."""

    def confirm(self) -> None:
        """RankLostError on all ranks if one has died; else the results of earlier collectives on vectors are valid."""

    def survivors(self) -> Communicator:
        """After a RankLostError: the communicator of the ranks that are alive. Each of them must call this."""
        return self

    def abort(self, status: int) -> None:
        """End all other ranks at once, because this one cannot continue."""

    def end_job(self, status: int) -> None:
        """End all ranks and this process at once, from any of its threads."""
        if self.survives:  # the end of one process does not end the job
            self.abort(status)
        os._exit(status)


@contextmanager
def together(communicator: Communicator) -> Iterator[None]:
    """If the block fails on some ranks, for example in opening a file, all ranks fail.

    The lowest of them raises its DptrainError (also for errors of the operating system, see `refused`), which is
    reported; the others raise a PeerError. Any other exception passes through at once. The block must not call a
    collective: a rank that has failed before would not take part.
    """
    failure: DptrainError | None = None
    try:
        yield
    except Exception as error:
        failure = error if isinstance(error, DptrainError) else refused(error)
        if failure is None:
            raise
    errors = communicator.allgather(None if failure is None else (str(failure), failure.status))
    failed = [rank for rank, error in enumerate(errors) if error is not None]
    if not failed:
        return
    if failure is None or communicator.rank != failed[0]:
        raise PeerError(*errors[failed[0]])
    if len(failed) < communicator.size:
        failure.args = (f"rank {communicator.world_ranks[communicator.rank]} on {socket.gethostname()}: {failure}",)
    failure.agreed = True
    raise failure


def known_to_all(communicator: Communicator, error: DptrainError) -> DptrainError:
    """The error to raise where every rank has found the same one: rank 0 reports it."""
    error.agreed = True
    return error if communicator.rank == 0 else PeerError(str(error), error.status)
