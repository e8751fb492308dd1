"""Ranks for tests that are threads of this process, with collectives that copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.parallel.communicator import Communicator

Result = TypeVar("Result")


class Board:
    """Where ranks that are threads of one process exchange values."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.posts: list[Any] = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=20)


class ThreadCommunicator(Communicator):
    """A rank that is a thread: it posts copies, waits for all ranks, and takes its part."""

    def __init__(self, board: Board, rank: int) -> None:
        self.board, self.rank, self.size = board, rank, board.ranks

    def barrier(self) -> None:
        self.board.barrier.wait()

    def allgather(self, value: Any) -> list[Any]:
        self.board.posts[self.rank] = value
        self.board.barrier.wait()
        posts = list(self.board.posts)
        self.board.barrier.wait()
        return posts

    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        assert sum(send_counts) == len(send)
        parts = np.split(send.copy(), np.cumsum(send_counts)[:-1])
        mine = [post[self.rank] for post in self.allgather(parts)]
        assert [len(part) for part in mine] == list(receive_counts)
        receive[...] = np.concatenate(mine)

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        slices = self.allgather(own.copy())
        assert [len(part) for part in slices] == list(counts)
        whole[...] = np.concatenate(slices)

    def allreduce(self, vector: Array) -> None:
        vector[...] = sum(self.allgather(vector.copy()))


def on_ranks(ranks: int, program: Callable[[Communicator], Result]) -> list[Result]:
    """The results of the program on each of that many ranks."""
    board = Board(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda rank: program(ThreadCommunicator(board, rank)), range(ranks)))
