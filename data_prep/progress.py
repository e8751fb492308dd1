"""Notes and a progress bar on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from dptrain.system.streams import write_to_stderr

from . import PROGRAM


def say(text: str) -> None:
    """Write a line, beginning with the name of this program, to standard error."""
    write_to_stderr(f"{PROGRAM}: {text}")


class Bar:
    """A progress bar, on a terminal only, that appears with the first `update`.

    Its names are those of tqdm, which pooch expects.
    """

    def __init__(self, description: str, total: int = 0, *, bytes: bool = False) -> None:
        self.description, self.total, self.bytes = description, total, bytes
        self._visible = sys.stderr.isatty()
        self._progress: Any = None

    def update(self, units: int) -> None:
        """Advance by a number of units."""
        if self._progress is None and self._visible:
            from rich import progress  # takes 0.1 s
            from rich.console import Console

            count = progress.DownloadColumn() if self.bytes else progress.MofNCompleteColumn()
            columns = (progress.TextColumn(self.description), progress.BarColumn(), count)
            self._progress = progress.Progress(
                *columns, progress.TimeRemainingColumn(), console=Console(stderr=True), transient=True
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=self.total)
        if self._progress is not None:
            self._progress.advance(self._task, units)

    def reset(self) -> None:
        """Begin again; pooch does, to show a full bar at the end."""
        if self._progress is not None:
            self._progress.reset(self._task)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
