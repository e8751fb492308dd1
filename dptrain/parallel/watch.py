"""Reports ranks that make no progress, with host, process id, step and phase.

    watch = Watch(communicator, limit=60, abort=600)        # seconds; made by all ranks together
    communicator.activity.enter("computing", step)          # by the main thread
    watch.close()

A daemon thread of each rank sends its status by UDP to up to four watchers, which judge by the rules of
`dptrain.health.stalls`. It makes no MPI call: MPI itself may hang, and only the main thread may call it. The caller's
`end` may call MPI, as the job ends then.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence

from dptrain.health.stalls import Status, Watcher
from dptrain.parallel.communicator import Communicator
from dptrain.system.addresses import own_addresses
from dptrain.system.streams import write_to_stderr

WATCHERS = 4
INTERVAL = 0.5  # seconds between two datagrams of a rank, at most
DATAGRAM_BYTES = 1024  # at most; a longer datagram is from another program


class Watch:
    """This rank's part: sends its status, and watches the others if it is a watcher. Made by all ranks together.

    limit       seconds after which a rank is reported as silent or stuck; 0: no watch
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
        self._rank, self._size = communicator.rank, communicator.size
        self.activity = communicator.activity
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._watcher: Watcher | None = None
        if not limit:
            return
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
        everyone = communicator.allgather((os.getpid(), port, own_addresses() if several else []))
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
        if self._thread is None:
            return
        self._closing.set()
        self._thread.join()
        self._thread = None
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
