"""Notes and a progress bar on standard error."""

from __future__ import annotations

import sys
from typing import Any

from dptrain.system.streams import write_to_stderr

from . import PROGRAM


def say(text: str) -> None:
    """Write a line, beginning with the name of this program, to standard error."""
    write_to_stderr(f"{PROGRAM}: {text}")


class Bar:
    """A progress bar, on a terminal only, that appears with the first `update`. pooch accepts it in place of tqdm."""

    def __init__(self, description: str, total: int = 0) -> None:
        self.description, self.total = description, total
        self._visible = sys.stderr.isatty()
        self._progress: Any = None

    def update(self, units: int) -> None:
        """Advance by a number of units."""
        if self._visible and self._progress is None:
            from rich.console import Console  # takes 0.1 s
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self.description, total=self.total)
        if self._progress is not None:
            self._progress.advance(self._task, units)

    def reset(self) -> None:
        """Set the bar to zero; pooch calls this at the end."""
        if self._progress is not None:
            self._progress.reset(self._task)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
