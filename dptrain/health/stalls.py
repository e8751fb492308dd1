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
from typing import NamedTuple

from dptrain.errors import STALLED
from dptrain.health.activity import WAITING
from dptrain.system.record import report_end


class Status(NamedTuple):
    """What a rank reports about itself; `age` is the seconds without progress by its own clock."""

    rank: int
    phase: str
    step: int | None
    age: float
    ended: bool = False

    @property
    def when(self) -> str:
        return "before the first step" if self.step is None else f"in step {self.step}"


@dataclass
class Stall:
    """A rank, or all ranks, without progress: since when, the likely cause, and when the job ends because of it."""

    who: str
    what: str
    began: float
    cause: str
    due: float = math.inf

    def text(self, now: float) -> str:
        return f"{self.who}{self.what} for {now - self.began:.0f} s"


class Watcher:
    """What the watcher `rank` knows of all ranks, and what it reports; times are seconds of one clock.

    names       of all ranks, for people
    watchers    the ranks that watch
    limit, abort, report, end   as `dptrain.parallel.watch.Watch` explains them
    """

    def __init__(
        self,
        rank: int,
        names: Sequence[str],
        watchers: Sequence[int],
        limit: float,
        abort: float,
        report: Callable[[str], None],
        end: Callable[[int], None],
        now: float,
    ) -> None:
        self.rank, self.names, self.limit, self.abort = rank, names, limit, abort or math.inf
        self._report, self._end = report, end
        self._lower_watchers = [other for other in watchers if other < rank]
        self._statuses: dict[int, Status] = {}
        self._heard = dict.fromkeys(range(len(names)), now)  # when the last status arrived, or the watch began
        self._never_heard: set[int] = set()  # reported as such
        self._reported: dict[int | None, Stall] = {}  # by rank; None: all ranks wait for each other
        self._judges_from = now

    def hear(self, status: Status, now: float) -> None:
        """A status has arrived."""
        before = self._statuses.get(status.rank)
        if before is None or not before.ended:  # datagrams may overtake each other
            self._statuses[status.rank] = status
            self._heard[status.rank] = now

    def restart(self, now: float, pause: float) -> None:
        """Forget silence and stalls: this process, and perhaps every other, did not run for a while.

        For `pause` seconds nothing is judged, because the statuses that have arrived meanwhile are old.
        """
        self._heard = dict.fromkeys(self._heard, now)
        self._reported.clear()
        self._judges_from = now + pause

    def judge(self, now: float) -> None:
        """Report what has changed, and end the job if it is time."""
        if now < self._judges_from:
            return
        stalls = self._stalls(now)
        if not any(self._is_heard(rank, now) for rank in self._lower_watchers):
            self._report_never_heard(now)
            for rank, stall in stalls.items():
                if rank in self._reported:
                    continue
                self._reported[rank], stall.due = stall, now + self.abort
                ends = f"; the job ends in {self.abort:g} s if that does not change (--stall-abort)"
                self._report(f"dptrain: {stall.text(now)}: {stall.cause}{ends if self.abort < math.inf else ''}")
        for rank in self._reported.keys() - stalls.keys():
            stall = self._reported.pop(rank)
            if rank is not None or not stalls:
                self._report(f"dptrain: {stall.who} continued after {now - stall.began:.0f} s")
        for stall in self._reported.values():
            if now >= stall.due:
                stall.due = math.inf
                reason = f"{stall.text(now)}: the job ends (--stall-abort)"
                self._report(f"dptrain: error: {reason}")
                report_end(STALLED, reason, retry=True)
                self._end(STALLED)

    def _stalls(self, now: float) -> dict[int | None, Stall]:
        present = [status for _, status in sorted(self._statuses.items()) if not status.ended]
        stalls: dict[int | None, Stall] = {}
        steps = [step for rank, _, step, _, _ in present if step is not None and self._is_heard(rank, now)]
        for rank, phase, step, age, _ in present:
            when = f"{phase} {self._statuses[rank].when}"
            if not self._is_heard(rank, now):
                # It may have continued after its last status; the ranks that wait for it know the step.
                others = f" (others are in step {max(steps)})" if steps and max(steps) != step else ""
                cause = "it may be stopped, swapped out or stuck in I/O, or its host cut off"
                what = f", last heard {when}{others}, has been silent"
                stalls[rank] = Stall(self.names[rank], what, self._heard[rank], cause)
            elif phase != WAITING and age > self.limit:
                cause = "it may be stuck in I/O, swapped out or far behind, or a forked worker is stopped"
                stalls[rank] = Stall(self.names[rank], f", {when}, has made no progress", now - age, cause)
        if not stalls and present and len(self._statuses) == len(self.names):
            last = min(present, key=lambda status: status.age)
            if last.age > self.limit:  # so every rank is in a collective
                what = f" have waited for each other {last.when}"
                stalls[None] = Stall("all ranks", what, now - last.age, "suspect the network or MPI")
        return stalls

    def _report_never_heard(self, now: float) -> None:
        """Such a rank is not called silent: a firewall may be the cause."""
        for rank in sorted(self._heard.keys() - self._statuses.keys() - self._never_heard):
            if now - self._heard[rank] > self.limit:
                self._never_heard.add(rank)
                self._report(
                    f"dptrain: rank {self.rank} receives nothing from {self.names[rank]}, so its stalls would not be "
                    "reported; is UDP blocked between their hosts?"
                )

    def _is_heard(self, rank: int, now: float) -> bool:
        status = self._statuses.get(rank)
        return status is not None and not status.ended and now - self._heard[rank] <= self.limit
