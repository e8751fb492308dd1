"""How functions of the API run in the process of a program: BLAS threads, and the end of all ranks after an error."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import threadpoolctl

from dptrain.errors import UNFORESEEN, DptrainError
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.mpi import connect


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit every loaded BLAS to one thread within the block, as the arithmetic requires."""
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        yield


@contextmanager
def all_ranks() -> Iterator[tuple[Communicator, str]]:
    """The communicator of a program, and a line that describes it: one process, or the ranks of mpirun.

    An error on one rank alone ends all of them, as the others may wait for this rank without end.
    """
    communicator, connection = connect()
    try:
        with one_blas_thread():
            yield communicator, connection
    except BaseException as error:
        if communicator.size > 1 and not (isinstance(error, DptrainError) and error.agreed):
            traceback.print_exc()
            communicator.abort(error.status if isinstance(error, DptrainError) else UNFORESEEN)
        raise
