"""The output of a job, passed on at once without mpirun's notices, and the launcher's own lines.

Standard output and standard error of the launcher may be one terminal with a progress bar. A rank draws the bar on
standard output: a line, and an empty one below it, where the cursor waits. Text on standard error is printed above the
bar, as the bar's next frame would erase it.
"""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable
from typing import IO

from dptrain.errors import OutputError
from dptrain.system.streams import Descriptor

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"  # a bar begins and ends with these
ERASE_BAR = b"\r\x1b[2K\x1b[1A\x1b[2K"  # from the empty line up to the bar's line
RECENT_BYTES = 8192  # more than mpirun's notice of a failed rank
MOST_HELD = 8192  # bytes that may become a notice
QUIET_SECONDS = 0.1
PIPE_BYTES = 1 << 20  # a pipe holds no more
RULE = re.compile(rb"(?m)^\0?[-=]{60,}\s*$")  # the first line of a long notice


class Screen:
    """Writes in whole pieces, from any thread and from signal handlers. Text is lost where a write fails."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt the main thread within a write
        self._bar = False
        self.lost: OutputError | None = None  # why standard output could not be written

    def out(self, content: bytes) -> None:
        """Write bytes of the job to standard output."""
        with self._lock:
            self.lost = _write(1, "standard output", content) or self.lost
            hidden, shown = content.rfind(HIDE_CURSOR), content.rfind(SHOW_CURSOR)
            if hidden != shown:
                self._bar = hidden > shown

    def error(self, content: bytes) -> None:
        """Write bytes to standard error, above the bar if there is one on the same terminal."""
        with self._lock:
            above = self._bar and content.endswith(b"\n") and _one_terminal()
            _write(2, "standard error", ERASE_BAR + content + b"\n" if above else content)

    def end_bar(self) -> None:
        """Remove a bar that the ranks have left, and show the cursor again."""
        with self._lock:
            if self._bar and os.isatty(1):
                _write(1, "standard output", ERASE_BAR + SHOW_CURSOR)
            self._bar = False

    def show_cursor(self) -> None:
        """Show the cursor while the job is stopped."""
        if self._bar and os.isatty(1):
            _write(1, "standard output", SHOW_CURSOR)


SCREEN = Screen()


def report(line: str) -> None:
    """Print one line of the launcher on standard error."""
    SCREEN.error(os.fsencode(f"launch: {line}\n"))


def _one_terminal() -> bool:
    """Whether standard output and standard error are the same terminal."""
    return os.isatty(1) and os.isatty(2) and os.fstat(1).st_rdev == os.fstat(2).st_rdev


def _write(number: int, name: str, content: bytes) -> OutputError | None:
    """Write all bytes to a file descriptor; returns the error where that fails."""
    try:
        Descriptor(number, name, drops=False).write(content)
    except OutputError as error:
        return error
    return None


class NoticeFilter:
    """Takes a stream in chunks, cut anywhere, and returns it without notices, which are in `withheld`."""

    def __init__(self, notices: re.Pattern[bytes] | None) -> None:
        self.withheld = self._held = b""
        self._notices = notices

    def take(self, chunk: bytes) -> bytes:
        """The bytes to pass on now: an incomplete line, and text after a rule, are held as they may become a notice."""
        if self._notices is None:
            return chunk
        text = self._notices.sub(self._withhold, self._held + chunk)
        rule = RULE.search(text)
        end = rule.start() if rule else text.rfind(b"\n") + 1
        if len(text) - end > MOST_HELD:
            end = len(text)
        self._held = text[end:]
        return text[:end]

    def release(self) -> bytes:
        """The bytes that are held; to be called at the end, and when nothing follows for a while."""
        held, self._held = self._held, b""
        return held

    def _withhold(self, notice: re.Match[bytes]) -> bytes:
        self.withheld += notice[0]
        return b""


class Relay(threading.Thread):
    """Passes a job's stream on to `target`, which takes bytes, from `start` to `finish`.

    `notices` are withheld; `recent` are the last 8 KiB of everything.
    """

    def __init__(self, source: IO[bytes], target: Callable[[bytes], None], notices: re.Pattern[bytes] | None) -> None:
        super().__init__(daemon=True)
        self.source, self.target = source, target
        self.recent = b""
        self._filter = NoticeFilter(notices)
        self._ending = False

    def run(self) -> None:
        with self.source:
            late = 0  # bytes read after the end of the job: a process that has left the job may write without end
            while late <= PIPE_BYTES:
                ending = self._ending
                if select.select([self.source], [], [], 0 if ending else QUIET_SECONDS)[0]:
                    chunk = os.read(self.source.fileno(), 65536)
                    if not chunk:
                        break
                    late += len(chunk) if ending else 0
                    self.recent = (self.recent + chunk)[-RECENT_BYTES:]
                    self.target(self._filter.take(chunk))
                elif ending:
                    break
                else:  # nothing follows for now: do not delay text until its line is complete
                    self.target(self._filter.release())
        self.target(self._filter.release())

    def finish(self) -> None:
        """Pass on what the pipe still holds, after the job has ended."""
        self._ending = True
        self.join()

    def show_notices(self) -> None:
        """Show the notices that were withheld; after `finish`."""
        self.target(self._filter.withheld)
