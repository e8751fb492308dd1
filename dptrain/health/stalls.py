"""Which ranks make no progress, and how that is reported: the rules, without sockets, threads or a clock.

To a watcher a rank is

    silent      when no status of it has arrived for the limit: its process is stopped, its host frozen, or it hangs in
                a call that does not release Python's lock (the GIL)
    stuck       when by its own status it has made no progress for the limit, other than in a collective, where any
                other rank may hold it up

The lowest watcher that is not silent itself reports, in one line. So exactly one does, whichever rank stalls.
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
    """What a rank reports about itself; `age` is the seconds without progress by its own clock."""

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
    """A rank, or all ranks, without progress: who and what, for how many seconds, and what may be the cause."""

    who: str
    seconds: float
    cause: str

    def __str__(self) -> str:
        return f"{self.who} for {self.seconds:.0f} s"


@dataclass
class Episode:
    """A reported stall: when it began, and when the job is to end because of it."""

    began: float
    due: float


class Watcher:
    """What the watcher `rank` knows of all ranks, and what it reports; times are seconds of one clock.

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
        self._heard = dict.fromkeys(range(len(names)), now)  # when the last status arrived, or the watch began
        self._never_heard: set[int] = set()  # reported as such
        self._episodes: dict[int | None, Episode] = {}  # by rank; None: all ranks wait for each other
        self._judges_from = now

    def hear(self, status: Status, now: float) -> None:
        """A status has arrived."""
        before = self._statuses.get(status.rank)
        if before is None or not before.ended:  # datagrams may overtake each other
            self._statuses[status.rank] = status
            self._heard[status.rank] = now

    def restart(self, now: float, pause: float) -> None:
        """Forget the silence so far: this process, and perhaps every other, did not run for a while.

        For `pause` seconds nothing is judged: the statuses that have arrived meanwhile are old.
        """
        for rank in self._heard.keys() - self._episodes.keys():
            self._heard[rank] = now
        for episode in self._episodes.values():
            episode.due = now + self.abort
        self._judges_from = now + pause

    def judge(self, now: float) -> None:
        """Report what has changed, and end the job if it is time."""
        if now < self._judges_from:
            return
        stalls = self._stalls(now)
        if not any(self._is_heard(rank, now) for rank in self._before):
            self._report_never_heard(now)
            for rank, stall in stalls.items():
                if rank not in self._episodes:
                    self._episodes[rank] = Episode(now - stall.seconds, now + self.abort)
                    ends = f"the job ends in {self.abort:g} s unless that changes (--stall-abort)"
                    consequence = "nothing is done about it" if self.abort == math.inf else ends
                    self._say(f"dptrain: {stall}: {stall.cause}; {consequence}")
        for rank in self._episodes.keys() - stalls.keys():
            seconds = now - self._episodes.pop(rank).began
            if rank is not None or not stalls:
                who = "all ranks continue" if rank is None else f"{self.names[rank]} continues"
                self._say(f"dptrain: {who} after {seconds:.0f} s")
        for rank, episode in self._episodes.items():
            if now >= episode.due:
                episode.due = math.inf
                reason = f"{stalls[rank]}: the job ends (--stall-abort)"
                self._say(f"dptrain: error: {reason}")
                report_end(STALLED, reason, retry=True)
                self._end(STALLED)

    def _stalls(self, now: float) -> dict[int | None, Stall]:
        present = [self._statuses[rank] for rank in sorted(self._statuses) if not self._statuses[rank].ended]
        stalls: dict[int | None, Stall] = {}
        heard = [status.step for status in present if self._is_heard(status.rank, now) and status.step is not None]
        for status in present:
            name = self.names[status.rank]
            if not self._is_heard(status.rank, now):
                # It may have continued after its last status; the ranks that wait for it know the step.
                others = f" (others are in step {max(heard)})" if heard and max(heard) != status.step else ""
                cause = "it may be stopped, swapped out or stuck in I/O, or its host cut off"
                who = f"{name}, last heard {status}{others}, has been silent"
                stalls[status.rank] = Stall(who, now - self._heard[status.rank], cause)
            elif status.phase != WAITING and status.age > self.limit:
                alone = ", or a forked worker is stopped" if len(self.names) == 1 else ""
                cause = f"it may be stuck in I/O, swapped out or far behind{alone}"
                stalls[status.rank] = Stall(f"{name}, {status}, has made no progress", status.age, cause)
        if not stalls and present and len(self._statuses) == len(self.names):
            last = min(present, key=lambda status: status.age)
            if last.age > self.limit:  # so every rank is in a collective
                who = f"all ranks have waited for each other {last.when}"
                stalls[None] = Stall(who, last.age, "suspect the network or MPI")
        return stalls

    def _report_never_heard(self, now: float) -> None:
        """Such a rank is not called silent: a firewall may be the cause."""
        for rank in sorted(self._heard.keys() - self._statuses.keys() - self._never_heard):
            if now - self._heard[rank] > self.limit:
                self._never_heard.add(rank)
                self._say(
                    f"dptrain: rank {self.rank} receives nothing from {self.names[rank]} (is UDP blocked between their "
                    "hosts?): a stop or stall of that rank would not be reported"
                )

    def _is_heard(self, rank: int, now: float) -> bool:
        status = self._statuses.get(rank)
        return status is not None and not status.ended and now - self._heard[rank] <= self.limit
