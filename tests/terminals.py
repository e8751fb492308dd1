"""A terminal for tests: a process in a pseudo-terminal, and the screen that a person would see (pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pyte

SECONDS = 60
FORGOTTEN = ("DPTRAIN_PROGRESS", "NO_COLOR", "COLUMNS", "LINES", "TERM", "COLORTERM")


class Terminal:
    """A process with a terminal of this size; `shell` gives it job control. The text above the screen is kept."""

    def __init__(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        columns: int = 100,
        rows: int = 30,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        inherited = {key: value for key, value in os.environ.items() if key not in FORGOTTEN}
        self._end, there = pty.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=there,
            stdout=there,
            stderr=there,
            cwd=cwd,
            env={**inherited, "TERM": "xterm-256color", **(variables or {})},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(there)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        if self._end >= 0:
            os.close(self._end)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self._set_size(columns, rows)
        self.screen.resize(rows, columns)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def disappear(self) -> None:
        """As when a connection breaks: the process's next writes fail."""
        os.close(self._end)
        self._end = -1

    def read(self, seconds: float = 0.1) -> bool:
        """Show what the process has written; False when nothing more can come."""
        if not select.select([self._end], [], [], seconds)[0]:
            return True
        try:
            chunk = os.read(self._end, 65536)
        except OSError:  # Linux: no process has the terminal any more
            return False
        self.written += chunk
        self._stream.feed(chunk)
        return bool(chunk)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Read until the condition is true."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self.read() or condition(), "\n".join(self.lines)

    def finish(self) -> int:
        """Read to the end; the exit status."""
        while self.read():
            pass
        return self.process.wait(timeout=SECONDS)

    @property
    def lines(self) -> list[str]:
        """All lines, also those that have left the screen, without blanks at their ends."""
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        lines = [line.rstrip() for line in (*above, *self.screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def line(self, start: str) -> str:
        """The last line that starts with this text, "" if there is none."""
        return next((line for line in reversed(self.lines) if line.startswith(start)), "")


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
