"""What mpirun and the ranks write: passed on at once, and remembered as far as it tells why a job ended."""

from __future__ import annotations

import math
import os
import re
import select
import sys
import threading
import time
from typing import IO

FINISHED = b"dptrain: finished"  # told by a run that has come to its end, where mpirun's status does not tell
TOLD = re.compile(rb"dptrain: error: ([^\n]*)(\n?)")
RECENT_BYTES = 8192  # more than mpirun's notice of a failed rank
LAST_SECONDS = 1.0
PIPE_BYTES = 1 << 20  # the most a pipe holds: what is read beyond it has been written after the end


def say(line: str) -> None:
    """One line of the launcher on standard error, in one piece, as ranks write there too.

    Not through sys.stderr: a signal handler may speak while the main thread does.
    """
    write(sys.stderr.fileno(), f"launch: {line}\n".encode())


def write(target: int, content: bytes) -> None:
    """All bytes to a file descriptor; nothing where it cannot be written, so that a job outlives its reader."""
    while content:
        try:
            content = content[os.write(target, content) :]
        except BlockingIOError:  # another process that shares it has made it so
            select.select([], [target], [])
        except OSError:
            return


class Relay(threading.Thread):
    """Passes a job's stream on to a file descriptor of this process, from `start` to `finish`.

    `told` is the first error that dptrain told there, None without one; `finished` says that it told of its end;
    `recent` are the last 8 KiB.
    """

    def __init__(self, source: IO[bytes], target: int) -> None:
        super().__init__(daemon=True)
        self.source, self.target = source, target
        self.told: str | None = None
        self.finished = False
        self.recent = b""
        self._told_in_full = False
        self._deadline = math.inf

    def run(self) -> None:
        with self.source:
            descriptor = self.source.fileno()
            spare = PIPE_BYTES
            while spare > 0:
                late = time.monotonic() > self._deadline
                if select.select([descriptor], [], [], 0 if late else 0.1)[0]:
                    chunk = os.read(descriptor, 65536)
                    if not chunk:
                        return
                    write(self.target, chunk)
                    self._remember(chunk)
                    spare -= len(chunk) if late else 0
                elif late:
                    return

    def _remember(self, chunk: bytes) -> None:
        text = self.recent + chunk
        self.finished = self.finished or FINISHED in text
        if not self._told_in_full and (found := TOLD.search(text)):
            self.told = found[1].decode(errors="replace").rstrip()
            self._told_in_full = found[2] == b"\n"
        self.recent = text[-RECENT_BYTES:]

    def finish(self) -> None:
        """Pass the rest on; a process that outlives its job and keeps the stream open is heard 1 s longer."""
        self._deadline = time.monotonic() + LAST_SECONDS
        self.join()
