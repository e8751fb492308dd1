"""Compares every collective with what each rank computes alone. Exits non-zero if a result is wrong."""

from __future__ import annotations

import numpy as np

from dptrain.parallel.communicator import Communicator
from dptrain.parallel.mpi import connect, launched_rank, launched_size


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"wrong: {what}")


def check_objects(communicator: Communicator) -> None:
    rank, size = communicator.rank, communicator.size
    check(communicator.broadcast({"from": rank}) == {"from": 0}, "broadcast")
    check(communicator.allgather(("rank", rank)) == [("rank", other) for other in range(size)], "allgather")


def check_alltoall(communicator: Communicator) -> None:
    """Rank r sends rank q the r + 2 q numbers 100 r + 10 q + 0, 1, ...: all counts differ and one is 0."""
    rank, size = communicator.rank, communicator.size

    def message(sender: int, receiver: int) -> np.ndarray:
        return np.arange(sender + 2 * receiver, dtype=np.float32) + 100 * sender + 10 * receiver

    sent = [message(rank, other) for other in range(size)]
    expected = [message(other, rank) for other in range(size)]
    received = np.full(sum(map(len, expected)), -1, np.float32)
    communicator.alltoall(np.concatenate(sent), [*map(len, sent)], received, [*map(len, expected)])
    check(np.array_equal(received, np.concatenate(expected)), "alltoall")


def check_vectors(communicator: Communicator) -> None:
    rank, size = communicator.rank, communicator.size
    counts = list(range(size))  # rank 0 sends nothing
    whole = np.full(sum(counts), -1, np.float32)
    communicator.allgather_slices(np.full(rank, rank, np.float32), whole, counts)
    check(np.array_equal(whole, np.repeat(np.arange(size), counts)), "allgather_slices")
    vector = np.arange(5, dtype=np.float32) + rank
    communicator.allreduce(vector)
    check(np.array_equal(vector, size * np.arange(5) + size * (size - 1) / 2), "allreduce")


def main() -> None:
    size, rank = launched_size(), launched_rank()
    communicator, line = connect()
    check((size, rank) == (communicator.size, communicator.rank), "the size or rank of the launcher")
    check_objects(communicator)
    check_alltoall(communicator)
    check_vectors(communicator)
    communicator.barrier()
    if communicator.rank == 0:
        print(line)


if __name__ == "__main__":
    main()
