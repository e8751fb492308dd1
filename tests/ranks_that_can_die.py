"""Ranks that are threads of this process and can die in any collective; the others notice it as with ULFM.

A rank can die before or after it has sent its part of a collective. In the second case some of the other ranks have
the result; for the ranks in `Death.without_data` the collective returns success, but no data.
"""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dptrain.arrays.memory import Array
from dptrain.errors import RankLostError
from dptrain.parallel.communicator import Communicator

Result = TypeVar("Result")
PATIENCE = 20  # seconds, after which a waiting rank fails because all hang


class DeathError(BaseException):
    """This rank is dead; no handler of errors sees it."""


@dataclass(frozen=True)
class Death:
    """The world rank `rank` dies in its `call`-th collective, counted from 0.

    If `without_data` is None, it dies before it sends its part. Otherwise it has sent its part, but on these ranks
    the collective returns success without data.
    """

    rank: int
    call: int
    without_data: Collection[int] | None = None


class World:
    """The ranks that are alive, and how many collectives each has called."""

    def __init__(self, ranks: int, deaths: Sequence[Death]) -> None:
        self.condition = threading.Condition()
        self.deaths = {(death.rank, death.call): death for death in deaths}
        self.calls = [0] * ranks
        self.dead: set[int] = set()

    def wait(self, until: Callable[[], bool]) -> None:
        assert self.condition.wait_for(until, PATIENCE), "the ranks hang"


class DyingCommunicator(Communicator):
    """One rank's view of the `members`, given as world ranks; `board` is shared by them."""

    survives = True

    def __init__(self, world: World, board: Board, world_rank: int) -> None:
        self.world, self.board, self.world_rank = world, board, world_rank
        self.world_ranks = board.members
        self.rank, self.size = board.members.index(world_rank), len(board.members)
        self._calls = self._agreements = 0
        self._parting = False

    def allgather(self, value: Any) -> list[Any]:
        posts = self._exchange(value)
        self.confirm()
        return posts

    def _exchange(self, value: Any) -> list[Any]:
        """The values of all ranks; None in place of each value if this rank gets success without data."""
        world, board = self.world, self.board
        with world.condition:
            death = self._count()
            posts = board.posts[self._calls]
            without_data = board.without_data[self._calls]
            self._calls += 1
            if death is not None and death.without_data is None:
                self._die()
            self._fail_if(board.broken)
            posts[self.world_rank] = value
            if death is not None:
                without_data.update(death.without_data or ())
                self._die()
            world.condition.notify_all()
            world.wait(lambda: len(posts) == self.size or board.broken)
            self._fail_if(len(posts) < self.size)
            return [None if self.world_rank in without_data else posts[rank] for rank in board.members]

    def _count(self) -> Death | None:
        """Count a call; returns the death that happens in it."""
        call = self.world.calls[self.world_rank]
        self.world.calls[self.world_rank] += 1
        return self.world.deaths.get((self.world_rank, call))

    def _die(self) -> None:
        self.world.dead.add(self.world_rank)
        self.world.condition.notify_all()
        raise DeathError

    def _fail_if(self, failed: bool) -> None:
        if failed:
            raise RankLostError("a rank has died")

    def barrier(self) -> None:
        self._exchange(None)

    def broadcast(self, value: Any, root: int = 0) -> Any:
        return pickle.loads(pickle.dumps(self.allgather(value)[root]))  # each rank gets a copy, as with MPI

    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        posts = self._exchange(np.split(send.copy(), np.cumsum(send_counts)[:-1]))
        if posts[0] is not None:
            receive[...] = np.concatenate([post[self.rank] for post in posts])

    def allgather_slices(self, own: Array, whole: Array, counts: Sequence[int]) -> None:
        posts = self._exchange(own.copy())
        if posts[0] is not None:
            whole[...] = np.concatenate(posts)

    def allreduce(self, vector: Array) -> None:
        posts = self._exchange(vector.copy())
        if posts[0] is not None:
            vector[...] = sum(posts)

    def confirm(self) -> None:
        self._fail_if(not self._all_agree(True))

    def survivors(self) -> DyingCommunicator:
        world, board = self.world, self.board
        with world.condition:
            board.revoked = True
            world.condition.notify_all()
        if not self._parting:
            self._all_agree(False)
        with world.condition:
            board.shrinking.add(self.world_rank)
            world.condition.notify_all()
            world.wait(lambda: board.smaller is not None or board.living() <= board.shrinking)
            if board.smaller is None:
                board.smaller = Board(world, sorted(board.living()))
            return DyingCommunicator(world, board.smaller, self.world_rank)

    def _all_agree(self, well: bool) -> bool:
        """Like ULFM's Agree: a revocation does not end it; all get the same answer even if a rank dies meanwhile."""
        world, board = self.world, self.board
        with world.condition:
            if self._count() is not None:
                self._die()
            votes, number = board.votes[self._agreements], self._agreements
            self._agreements += 1
            votes[self.world_rank] = well
            world.condition.notify_all()
            world.wait(lambda: number in board.agreed or board.living() <= votes.keys())
            if number not in board.agreed:
                board.agreed[number] = not world.dead & set(board.members) and all(votes.values())
            self._parting = not board.agreed[number]
            return not self._parting

    def abort(self, status: int) -> None:
        raise AssertionError("nothing here is to end all ranks")


class Board:
    """The shared state of the members of one communicator."""

    def __init__(self, world: World, members: list[int]) -> None:
        self.world, self.members = world, members
        self.posts: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self.without_data: defaultdict[int, set[int]] = defaultdict(set)
        self.revoked = False
        self.shrinking: set[int] = set()
        self.votes: defaultdict[int, dict[int, bool]] = defaultdict(dict)
        self.agreed: dict[int, bool] = {}
        self.smaller: Board | None = None

    def living(self) -> set[int]:
        return set(self.members) - self.world.dead

    @property
    def broken(self) -> bool:
        return self.revoked or bool(self.world.dead & set(self.members))


def on_ranks_that_can_die(
    ranks: int, program: Callable[[Communicator], Result], deaths: Sequence[Death] = ()
) -> tuple[dict[int, Result], World]:
    """The results of the program on each world rank that survives, and the final state of the world."""
    world = World(ranks, deaths)
    board = Board(world, list(range(ranks)))

    def life(rank: int) -> Result | None:
        try:
            return program(DyingCommunicator(world, board, rank))
        except DeathError:
            return None

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(life, range(ranks)))
    return {rank: result for rank, result in enumerate(results) if rank not in world.dead and result is not None}, world
