"""The output of a job, passed on at once without mpirun's notices, and the launcher's own lines.

Standard output and standard error of the launcher may be one terminal with a progress bar on it. A rank draws the bar
on standard output: a line, and an empty one below it where the cursor waits. Text on standard error is printed above
the bar, as the bar's next frame would erase or cut it.
"""

from __future__ import annotations

import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import IO

from .targets.target import Notices

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"  # a bar begins and ends with these
ERASE_BAR = b"\r\x1b[2K\x1b[1A\x1b[2K"  # from the empty line up to the bar's line
RECENT_BYTES = 8192  # more than mpirun's notice of a failed rank
LONGEST_NOTICE = 8192  # bytes
QUIET_SECONDS = 0.1
LAST_SECONDS = 1.0
PIPE_BYTES = 1 << 20  # the most a pipe holds: bytes beyond it were written after the end


class Screen:
    """Writes in whole pieces, from any thread and from signal handlers. Bytes are lost where a write fails."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt the main thread within a write
        self._bar = False
        self._within_line = False
        self.lost: OSError | None = None  # why standard output could not be written

    def out(self, content: bytes) -> None:
        """Write bytes of the job to standard output."""
        with self._lock:
            self.lost = _write(sys.stdout.fileno(), content) or self.lost
            hidden, shown = content.rfind(HIDE_CURSOR), content.rfind(SHOW_CURSOR)
            if hidden != shown:
                self._bar = hidden > shown
            if content:
                self._within_line = not content.endswith(b"\n")

    def error(self, content: bytes) -> None:
        """Write bytes to standard error, above the bar if there is one on the same terminal."""
        with self._lock:
            above_bar = self._bar and not self._within_line and content.endswith(b"\n") and _one_terminal()
            _write(sys.stderr.fileno(), ERASE_BAR + content + b"\n" if above_bar else content)

    def end_bar(self) -> None:
        """Remove a bar that the ranks have left, and show the cursor again."""
        with self._lock:
            if self._bar and sys.stdout.isatty():
                _write(sys.stdout.fileno(), (b"\n" if self._within_line else ERASE_BAR) + SHOW_CURSOR)
            self._bar = self._within_line = False

    def show_cursor(self) -> None:
        """While the job is stopped the terminal belongs to others."""
        if self._bar and sys.stdout.isatty():
            _write(sys.stdout.fileno(), SHOW_CURSOR)


SCREEN = Screen()


def say(line: str) -> None:
    """Print one line of the launcher on standard error."""
    SCREEN.error(os.fsencode(f"launch: {line}\n"))


def _one_terminal() -> bool:
    """Whether standard output and standard error are the same terminal."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return False
    return os.fstat(sys.stdout.fileno()).st_rdev == os.fstat(sys.stderr.fileno()).st_rdev


def _write(target: int, content: bytes) -> OSError | None:
    """Write all bytes to a file descriptor. Where that fails they are lost, and the error is returned."""
    while content:
        try:
            content = content[os.write(target, content) :]
        except BlockingIOError:  # another process that shares it has made it non-blocking
            select.select([], [target], [])
        except OSError as error:
            return error
    return None


class NoticeFilter:
    """Takes a stream in chunks, cut anywhere, and returns it without notices, which are in `withheld`.

    The launcher reports the end in one line. Notices are shown where nothing else explains the end.
    """

    def __init__(self, notices: Notices | None) -> None:
        self.withheld = b""
        self._notices = notices
        self._block: list[bytes] = []  # whole lines that may become a notice
        self._line = b""  # the beginning of a line
        self._within = False  # the beginning of this line has been passed on

    def take(self, chunk: bytes) -> bytes:
        """What to pass on after these bytes."""
        if self._notices is None:
            return chunk
        *lines, self._line = (self._line + chunk).split(b"\n")
        passed = b"".join(self._take_line(line + b"\n", self._notices) for line in lines)
        return passed + self.release() if self._within else passed

    def release(self) -> bytes:
        """What was held back; to be called at the end, and when nothing follows for a while."""
        held = b"".join(self._block) + self._line
        self._within = self._within or bool(self._line)
        self._block, self._line = [], b""
        return held

    def _take_line(self, line: bytes, notices: Notices) -> bytes:
        if self._within:
            self._within = False
            return line
        opened = any(map(bytes.strip, self._block))  # an empty line may come before a notice
        if not opened and notices.line.match(line):
            self.withheld += line
            return b""
        self._block.append(line)
        whole = b"".join(self._block)
        if not opened:
            return b"" if not line.strip() or notices.opening.fullmatch(line) else self._pass_block()
        if not notices.closing.fullmatch(line):
            return b"" if len(whole) <= LONGEST_NOTICE else self._pass_block()
        if not notices.words.search(whole):
            return self._pass_block()
        self.withheld += whole
        self._block = []
        return b""

    def _pass_block(self) -> bytes:
        whole, self._block = b"".join(self._block), []
        return whole


class Relay(threading.Thread):
    """Passes a job's stream on to `target`, which takes bytes, from `start` to `finish`.

    `notices` are withheld; `recent` are the last 8 KiB of everything.
    """

    def __init__(self, source: IO[bytes], target: Callable[[bytes], None], notices: Notices | None) -> None:
        super().__init__(daemon=True)
        self.source, self.target = source, target
        self.recent = b""
        self._filter = NoticeFilter(notices)
        self._deadline = math.inf

    def run(self) -> None:
        with self.source:
            self._pass_on()
        self.target(self._filter.release())

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
                self.target(self._filter.take(chunk))
                spare -= len(chunk) if late else 0
            elif late:
                return
            else:  # nothing follows for now: text must not wait for the rest of its line
                self.target(self._filter.release())

    def finish(self) -> None:
        """Pass the rest on; a process that outlives its job and keeps the stream open is read 1 s longer."""
        self._deadline = time.monotonic() + LAST_SECONDS
        self.join()

    def show_notices(self) -> None:
        """Show the notices that were withheld; after `finish`."""
        self.target(self._filter.withheld)
