"""The output of a job, passed on at once without mpirun's notices, and the launcher's own lines.

Rank 0 may draw a live view on the terminal (dptrain/report/view.py). A frame of it leaves the cursor at its first line,
which is empty. Text that is printed there erases the frame first; rank 0 draws the next one below the text.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
from collections.abc import Callable
from typing import IO

from dptrain.errors import OutputError
from dptrain.system.streams import Descriptor, same_terminal

ERASE = b"\x1b[J"  # from the cursor to the end of the screen; begins a frame, and without another one ends the view
FRAME_END = re.compile(rb"\x1b\[\d+A\r+\n")  # Open MPI's terminal adds a \r
NOTICE_BYTES = 8192  # more than a notice has
QUIET_SECONDS = 0.1
PIPE_BYTES = 1 << 20  # a pipe holds no more
RULE = re.compile(rb"(?m)^\n?\0?[-=]{60,}\s*$")  # the first line of a long notice


class Screen:
    """Writes in whole pieces, from any thread and from signal handlers. Text is lost where a write fails."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt the main thread within a write
        self._frame = False  # whether a frame is on the terminal
        self.lost: OutputError | None = None  # why standard output could not be written

    def out(self, content: bytes) -> None:
        """Write bytes of the job to standard output."""
        if not content:
            return
        with self._lock:
            try:
                Descriptor(1, "standard output", drops=False).write(ERASE + content if self._frame else content)
            except OutputError as error:
                self.lost = error
            drawn = max((found.start() for found in FRAME_END.finditer(content)), default=-1)
            self._frame = drawn > content.rfind(ERASE)

    def error(self, content: bytes) -> None:
        """Write bytes to standard error, in the place of a frame on the same terminal."""
        with self._lock, contextlib.suppress(OutputError):
            if self._frame and same_terminal():
                content, self._frame = ERASE + content, False
            Descriptor(2, "standard error", drops=False).write(content)

    def end_view(self) -> None:
        """Remove a frame that the ranks have left."""
        with self._lock:
            if self._frame:
                self.out(b"\r" + ERASE)


SCREEN = Screen()


def report(line: str) -> None:
    """Print one line of the launcher on standard error."""
    SCREEN.error(os.fsencode(f"launch: {line}\n"))


class Relay(threading.Thread):
    """Passes a job's stream on to `target`, without `notices`; `recent` are the last 8 KiB of everything."""

    def __init__(
        self, source: IO[bytes] | None, target: Callable[[bytes], None], notices: re.Pattern[bytes] | None
    ) -> None:
        super().__init__(daemon=True)
        assert source is not None
        self.source, self.target, self.notices = source, target, notices
        self.recent = self._held = b""
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
                    self.take(chunk)
                elif ending:
                    break
                else:  # nothing follows for now: do not delay text until its line is complete
                    self.release()
        self.release()

    def take(self, chunk: bytes) -> None:
        """Pass a chunk on, but hold an incomplete line, and text after a rule, as they may become a notice."""
        self.recent = (self.recent + chunk)[-NOTICE_BYTES:]
        text, held = self._held + chunk, 0
        if self.notices is not None:
            text = self.notices.sub(b"", text)
            rule = RULE.search(text)
            held = len(text) - (rule.start() if rule else text.rfind(b"\n") + 1)
        end = len(text) if held > NOTICE_BYTES else len(text) - held
        self._held = text[end:]
        self.target(text[:end])

    def release(self) -> None:
        """Pass on what is held."""
        held, self._held = self._held, b""
        self.target(held)

    def finish(self) -> None:
        """Pass on what the pipe still holds, after the job has ended."""
        self._ending = True
        self.join()
