"""Standard output and standard error of the launcher, which may be one terminal with a progress bar on it.

A rank draws the bar on standard output: a line, and an empty one below it where the cursor waits. Whatever comes on
standard error is printed above the bar, as its next frame would erase or cut it.
"""

from __future__ import annotations

import os
import select
import sys
import threading

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"  # a bar begins and ends with these
ERASE_BAR = b"\r\x1b[2K\x1b[1A\x1b[2K"  # from the empty line up to the bar's line


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
    """Write all bytes to a file descriptor; they are lost where that fails, so that a job outlives its reader.

    The error is returned.
    """
    while content:
        try:
            content = content[os.write(target, content) :]
        except BlockingIOError:  # another process that shares it has made it non-blocking
            select.select([], [target], [])
        except OSError as error:
            return error
    return None
