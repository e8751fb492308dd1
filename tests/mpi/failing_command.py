"""A command of dptrain that fails on some ranks: failing_command.py HOW RANK,RANK...

together    a DownloadError inside `together`: all ranks fail
alone       a DownloadError while the other ranks wait for this one
exception   an unforeseen exception while the other ranks wait
usage       a flag that does not exist, on every rank

Every rank that is not killed writes a file ended-RANK with its status.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from dptrain.commands import train
from dptrain.commands.main import main as run_dptrain
from dptrain.errors import DownloadError
from dptrain.parallel.communicator import Communicator, together

HOW = sys.argv[1]
FAILING = [int(rank) for rank in sys.argv[2].split(",")]


def command(parsed: Namespace, communicator: Communicator, connection: str) -> int:
    """Stands for `dptrain train`."""
    fails = communicator.rank in FAILING
    if HOW == "together":
        with together(communicator):
            if fails:
                raise DownloadError(f"disk {communicator.rank} is full")
    elif fails and HOW == "alone":
        raise DownloadError(f"disk {communicator.rank} is full")
    elif fails:
        raise ZeroDivisionError("unforeseen")
    communicator.barrier()
    return 0


def main() -> int:
    train.run = command
    status = run_dptrain(["train", "--no-such-flag"] if HOW == "usage" else ["train"])
    from mpi4py import MPI

    Path(f"ended-{MPI.COMM_WORLD.Get_rank()}").write_text(str(status))
    if HOW in ("together", "usage"):
        MPI.COMM_WORLD.Barrier()  # mpirun may kill the others when one has ended with an error
    return status


if __name__ == "__main__":
    sys.exit(main())
