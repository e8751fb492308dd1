"""Which ranks do not move, and what is said about it: the rules, without sockets, threads or a clock.

To a watcher a rank is

    silent      when nothing was heard of it for the limit: its process is stopped, its host frozen, or it hangs in a
                call that does not give away Python's lock (the GIL)
    stuck       when it says itself that it has made no progress for the limit, other than in a collective, where it
                may be held up by any other rank

The lowest watcher that is not silent itself says so in one line; so one of them does, whichever rank it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dptrain.errors import STALLED
from dptrain.health.activity import WAITING
from dptrain.system.record import report_end


@dataclass(frozen=True)
class Status:
    """What a rank tells of itself; `age` is the seconds without progress by its own clock."""

    rank: int
    phase: str
    step: int | None
    age: float
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.phase} {self.when}"

    @property
    def when(self) -> str:
        return "before the first step" if self.step is None else f"in step {self.step}"


@dataclass(frozen=True)
class Stall:
    """Who does not move, for how many seconds, and what may be the cause."""

    who: str
    seconds: float
    cause: str


@dataclass
class Episode:
    """A stall that was told: when it began, and when the job is to end for it."""

    began: float
    due: float


class Watcher:
    """What the watcher `rank` has heard of all ranks, and what it says about them; times are seconds of one clock.

    names       of all ranks, for people
    watchers    the ranks that watch
    limit, abort, say, end      as `dptrain.parallel.watch.Watch` explains them
    """

    def __init__(
        self,
        rank: int,
        names: Sequence[str],
        watchers: Sequence[int],
        limit: float,
        abort: float,
        say: Callable[[str], None],
        end: Callable[[int], None],
        now: float,
    ) -> None:
        self.rank, self.names, self.limit, self.abort = rank, names, limit, abort or math.inf
        self._say, self._end = say, end
        self._before = [other for other in watchers if other < rank]
        self._statuses: dict[int, Status] = {}
        self._heard = dict.fromkeys(range(len(names)), now)  # when; nobody could have been heard before now
        self._unheard: set[int] = set()  # was told
        self._episodes: dict[int | None, Episode] = {}  # by rank; None: all ranks wait for each other
        self._judges_from = now

    def hear(self, status: Status, now: float) -> None:
        before = self._statuses.get(status.rank)
        if before is None or not before.ended:  # datagrams may overtake each other
            self._statuses[status.rank] = status
            self._heard[status.rank] = now

    def restart(self, now: float, pause: float) -> None:
        """After a time in which this process did not run, and perhaps no other: forget how long nobody was heard.

        For `pause` seconds nobody is judged: what has come in meanwhile is old.
        """
        for rank in self._heard.keys() - self._episodes.keys():
            self._heard[rank] = now
        for episode in self._episodes.values():
            episode.due = now + self.abort
        self._judges_from = now + pause

    def judge(self, now: float) -> None:
        """Say what has changed, and end the job if it is time."""
        if now < self._judges_from:
            return
        stalls = self._stalls(now)
        if not any(self._is_heard(rank, now) for rank in self._before):
            self._say_who_cannot_be_heard(now)
            for rank, stall in stalls.items():
                if rank not in self._episodes:
                    self._episodes[rank] = Episode(now - stall.seconds, now + self.abort)
                    self._say(f"dptrain: {self._told(stall)}: {stall.cause}; {self._consequence()}")
        for rank in self._episodes.keys() - stalls.keys():
            seconds = now - self._episodes.pop(rank).began
            if rank is not None:
                self._say(f"dptrain: {self.names[rank]} continues after {seconds:.0f} s")
            elif not stalls:
                self._say(f"dptrain: all ranks continue after {seconds:.0f} s")
        for rank, episode in self._episodes.items():
            if now >= episode.due:
                episode.due = math.inf
                reason = f"{self._told(stalls[rank])}: the job ends (--stall-abort)"
                self._say(f"dptrain: error: {reason}")
                report_end(STALLED, reason, retry=True)
                self._end(STALLED)

    def _stalls(self, now: float) -> dict[int | None, Stall]:
        present = [self._statuses[rank] for rank in sorted(self._statuses) if not self._statuses[rank].ended]
        stalls: dict[int | None, Stall] = {}
        furthest = max((status.step for status in present if status.step is not None), default=None)
        for status in present:
            name, silence = self.names[status.rank], now - self._heard[status.rank]
            if silence > self.limit:
                cause = "it may be stopped, swapped out or stuck in I/O, or its host cut off"
                # It went on a little after it was last heard; how far, the others know, who wait for it.
                others = f" (others are in step {furthest})" if status.step != furthest else ""
                stalls[status.rank] = Stall(f"{name}, last heard {status}{others}, has been silent", silence, cause)
            elif status.phase != WAITING and status.age > self.limit:
                cause = "it may be stuck in I/O, swapped out or far behind"
                if len(self.names) == 1:
                    cause += ", or a helper process is stopped"
                stalls[status.rank] = Stall(f"{name}, {status}, has made no progress", status.age, cause)
        if not stalls and present and len(self._statuses) == len(self.names):
            last = min(present, key=lambda status: status.age)
            if last.age > self.limit:  # so every rank is in a collective
                who = f"all ranks have waited for each other {last.when}"
                stalls[None] = Stall(who, last.age, "suspect the network or MPI")
        return stalls

    def _told(self, stall: Stall) -> str:
        return f"{stall.who} for {stall.seconds:.0f} s"

    def _consequence(self) -> str:
        if self.abort == math.inf:
            return "nothing is done about it"
        return f"the job ends in {self.abort:g} s unless that changes (--stall-abort)"

    def _say_who_cannot_be_heard(self, now: float) -> None:
        """A firewall is no reason to call a rank silent."""
        for rank in sorted(self._heard.keys() - self._statuses.keys() - self._unheard):
            if now - self._heard[rank] > self.limit:
                self._unheard.add(rank)
                self._say(
                    f"dptrain: {self.names[rank]} cannot be heard by rank {self.rank} (is UDP blocked between their "
                    "hosts?): should it be stopped or stuck, nobody would say so"
                )

    def _is_heard(self, rank: int, now: float) -> bool:
        status = self._statuses.get(rank)
        return status is not None and not status.ended and now - self._heard[rank] <= self.limit
