"""Reports ranks that make no progress, with host, process id, step and phase.

    watch = Watch(communicator, limit=60, abort=600)        # seconds; made by all ranks together
    communicator.activity.enter("computing", step)          # by the main thread
    watch.close()

A daemon thread of each rank sends its status by UDP to up to four watchers. It makes no MPI call: MPI itself may hang,
and only the main thread may call it. To a watcher a rank is

    silent      when no status of it has arrived for the limit: its process is stopped, its host frozen, or it hangs in
                a call that does not release Python's lock (the GIL)
    stuck       when by its own status it has made no progress for the limit, other than in a collective, where any
                other rank may hold it up

The lowest watcher that is not silent itself reports. So exactly one does, whichever rank stalls.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import NamedTuple

from dptrain.errors import STALLED
from dptrain.health.activity import WAITING
from dptrain.parallel.communicator import Communicator
from dptrain.system.addresses import local_addresses
from dptrain.system.record import report_end
from dptrain.system.streams import write_to_stderr

WATCHERS = 4
INTERVAL = 0.5  # seconds between two datagrams of a rank, at most
DATAGRAM_BYTES = 1024  # at most; a longer datagram is from another program


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


@dataclass
class Watcher:
    """What the watcher `rank` knows of all ranks, and what it reports; times are seconds of one clock."""

    rank: int
    names: Sequence[str]  # of all ranks, for people
    watchers: Sequence[int]  # the ranks that watch
    limit: float
    abort: float
    report: Callable[[str], None]
    end: Callable[[int], None]
    now: InitVar[float]

    def __post_init__(self, now: float) -> None:
        self._statuses: dict[int, Status] = {}
        self._heard = dict.fromkeys(range(len(self.names)), now)  # when the last status arrived, or the watch began
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
        if not any(self._is_heard(rank, now) for rank in self.watchers if rank < self.rank):
            for rank in stalls.keys() - self._reported.keys():
                self._begin(rank, stalls[rank], now)
        for rank in self._reported.keys() - stalls.keys():
            stall = self._reported.pop(rank)
            if rank is not None or not stalls:
                self.report(f"dptrain: {stall.who} continued after {now - stall.began:.0f} s")
        for stall in self._reported.values():
            if now >= stall.due:
                stall.due = math.inf
                reason = f"{stall.text(now)}: the job ends (--stall-abort)"
                self.report(f"dptrain: error: {reason}")
                report_end(STALLED, reason, retry=True)
                self.end(STALLED)

    def _begin(self, rank: int | None, stall: Stall, now: float) -> None:
        self._reported[rank] = stall
        ends = ""
        if self.abort and (rank is None or rank in self._statuses):
            stall.due = now + self.abort
            ends = f"; the job ends in {self.abort:g} s if that does not change (--stall-abort)"
        self.report(f"dptrain: {stall.text(now)}: {stall.cause}{ends}")

    def _stalls(self, now: float) -> dict[int | None, Stall]:
        stalls: dict[int | None, Stall] = {}
        present = [status for status in self._statuses.values() if not status.ended]
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
        never_heard = self._heard.keys() - self._statuses.keys()
        if not stalls and present and not never_heard:
            last = min(present, key=lambda status: status.age)
            if last.age > self.limit:  # so every rank is in a collective
                what = f" have waited for each other {last.when}"
                stalls[None] = Stall("all ranks", what, now - last.age, "suspect the network or MPI")
        for rank in never_heard:
            if now - self._heard[rank] > self.limit:  # this does not end the job, as the rank may be well
                cause = f"is UDP blocked between its host and that of rank {self.rank}? Its stalls are not reported"
                stalls[rank] = Stall(self.names[rank], " has sent nothing", self._heard[rank], cause)
        return stalls

    def _is_heard(self, rank: int, now: float) -> bool:
        status = self._statuses.get(rank)
        return status is not None and not status.ended and now - self._heard[rank] <= self.limit


class Watch:
    """This rank's part: sends its status, and watches the others if it is a watcher. Made by all ranks together.

    limit       seconds after which a rank is reported as silent or stuck
    abort       seconds from then until the job ends; 0, and in a process alone: never
    report      takes a line for the user; called in the thread of the watch, like
    end         ends this process with a status, and with it the job: the main thread may hang in MPI
    """

    def __init__(
        self,
        communicator: Communicator,
        *,
        limit: float,
        abort: float,
        report: Callable[[str], None] = write_to_stderr,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._rank, self._size, self._process = communicator.rank, communicator.size, os.getpid()
        self.activity = communicator.activity
        self._closing = threading.Event()
        self._socket: socket.socket | None = None
        self._watcher: Watcher | None = None
        hosts, processes = self._meet(communicator)
        watchers = watchers_of(hosts)
        if self._rank in watchers:
            numbered = zip(communicator.world_ranks, hosts, processes, strict=True)
            names = [f"rank {rank} on {host} (process {process})" for rank, host, process in numbered]
            abort = abort if self._size > 1 else 0
            self._watcher = Watcher(self._rank, names, watchers, limit, abort, report, end, time.monotonic())
        self._interval = min(INTERVAL, limit / 4)
        self._longest_gap = min(2 * self._interval + 1, limit / 2)
        self._send()  # from now on the silence of this rank is reported
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _meet(self, communicator: Communicator) -> tuple[list[str], list[int]]:
        """Open the socket and exchange addresses; the hosts and process ids of all ranks."""
        hosts = communicator.allgather(socket.gethostname())
        several = len(set(hosts)) > 1
        port = 0
        if self._size > 1:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(("" if several else "127.0.0.1", 0))
            port = self._socket.getsockname()[1]
        everyone = communicator.allgather((os.getpid(), port, local_addresses() if several else []))
        processes, ports, addresses = (list(each) for each in zip(*everyone, strict=True))
        self._token: bytes = communicator.broadcast(secrets.token_bytes(16))
        self._destinations: list[tuple[str, int]] = []
        for rank in watchers_of(hosts):
            if rank != self._rank:
                reached_at = ["127.0.0.1"] if hosts[rank] == hosts[self._rank] else addresses[rank]
                self._destinations += [(address, ports[rank]) for address in reached_at]
        return hosts, processes

    def close(self) -> None:
        """This rank ends as intended: its silence is not reported from now on."""
        if os.getpid() != self._process:  # a process that a user's layer has forked is not the rank
            return
        self._closing.set()
        self._thread.join()
        self._send(ended=True)
        if self._socket is not None:
            self._socket.close()

    def _run(self) -> None:
        # A socket holds some 270 datagrams: many ranks send spread over the interval, and watchers fetch more often.
        pause = self._interval if self._watcher is None else self._interval / (1 + self._size // 100)
        wait, woken = self._interval * self._rank / self._size, time.monotonic()
        while not self._closing.wait(wait):
            now = time.monotonic()
            wait, gap, woken = pause, now - woken, now
            if gap > self._longest_gap:  # this process was stopped, perhaps all of them
                self.activity.progress()
                if self._watcher is not None:
                    self._watcher.restart(now, 2 * self._interval)
            self._send()
            if self._watcher is not None:
                self._listen(self._watcher, now)
                self._watcher.judge(now)

    def _send(self, ended: bool = False) -> None:
        now = time.monotonic()
        status = Status(self._rank, *self.activity.current, now - self.activity.progressed, ended)
        if self._watcher is not None:
            self._watcher.hear(status, now)
        if self._socket is None:
            return
        datagram = self._token + json.dumps(status).encode()
        for destination in self._destinations:
            with contextlib.suppress(OSError):  # the network is down; the watchers report this rank as silent
                self._socket.sendto(datagram, destination)

    def _listen(self, watcher: Watcher, now: float) -> None:
        """Receive what has arrived, at most 1,000 datagrams: a flood must not delay this rank's own status."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # no more
            for _ in range(1000):
                datagram = self._socket.recv(DATAGRAM_BYTES)
                if datagram.startswith(self._token):
                    watcher.hear(Status(*json.loads(datagram[len(self._token) :])), now)


def watchers_of(hosts: Sequence[str]) -> list[int]:
    """The ranks that watch, from each rank's host: on as many hosts as possible, as one of them may be frozen."""
    first = set({host: rank for rank, host in reversed(list(enumerate(hosts)))}.values())
    firsts_before_others = sorted(range(len(hosts)), key=lambda rank: (rank not in first, rank))
    return sorted(firsts_before_others[:WATCHERS])
