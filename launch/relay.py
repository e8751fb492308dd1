"""The output of mpirun and the ranks: passed on at once, without what the launcher reports itself."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable
from typing import IO

from .notices import NoticeFilter
from .records import Record, RecordFilter

RECENT_BYTES = 8192  # more than mpirun's notice of a failed rank
QUIET_SECONDS = 0.1
LAST_SECONDS = 1.0
PIPE_BYTES = 1 << 20  # the most a pipe holds: what is read beyond it has been written after the end


class Relay(threading.Thread):
    """Passes a job's stream on to `target`, which takes bytes, from `start` to `finish`.

    The final records with the attempt's `token` are taken out, and mpirun's notices too unless `verbose`; `recent` are
    the last 8 KiB of everything.
    """

    def __init__(
        self, source: IO[bytes], target: Callable[[bytes], None], token: str, *, verbose: bool = False
    ) -> None:
        super().__init__(daemon=True)
        self.source, self.target, self.verbose = source, target, verbose
        self.recent = b""
        self._records, self._notices = RecordFilter(token), NoticeFilter()
        self._deadline = math.inf

    @property
    def records(self) -> list[Record]:
        """The final records so far."""
        return self._records.records

    def run(self) -> None:
        with self.source:
            self._pass_on()
        self._show(self._records.release(end=True))
        if not self.verbose:
            self.target(self._notices.release())

    def _pass_on(self) -> None:
        descriptor = self.source.fileno()
        spare = PIPE_BYTES
        while spare > 0:
            late = time.monotonic() > self._deadline
            if select.select([descriptor], [], [], 0 if late else QUIET_SECONDS)[0]:
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    return
                self.recent = (self.recent + chunk)[-RECENT_BYTES:]
                self._show(self._records.take(chunk))
                spare -= len(chunk) if late else 0
            elif late:
                return
            else:  # nothing follows for now: text must not wait for the rest of its line
                self._show(self._records.release())
                self.target(self._notices.release())

    def _show(self, content: bytes) -> None:
        self.target(content if self.verbose else self._notices.take(content))

    def finish(self) -> None:
        """Pass the rest on; a process that outlives its job and keeps the stream open is heard 1 s longer."""
        self._deadline = time.monotonic() + LAST_SECONDS
        self.join()

    def show_notices(self) -> None:
        """Show the notices that were withheld; after `finish`."""
        self.target(self._notices.withheld)
