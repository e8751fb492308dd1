"""Progress for people: a bar on a terminal, plain lines elsewhere, nothing on ranks other than 0.

A notebook saves every frame of a bar, so it gets one line an epoch. Under mpirun a rank does not know what shows its
output: Open MPI gives it a pseudo-terminal even when its own output goes to a file. The launcher knows, and sets
DPTRAIN_PROGRESS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from dptrain.parallel.communicator import launched_size
from dptrain.system.notebook import in_notebook
from dptrain.system.text import shown

PROGRESS_VARIABLE = "DPTRAIN_PROGRESS"  # "bar" or "lines"


def on_terminal() -> bool:
    """Does a person watch standard output?"""
    wanted = os.environ.get(PROGRESS_VARIABLE)
    return wanted == "bar" if wanted else sys.stdout.isatty() and launched_size() is None and not in_notebook()


class Progress:
    """Lines on standard output, and on a terminal a bar over the steps of the run."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._only_epochs = in_notebook()
        self._bar: Any = None
        self._task: Any = None

    def start(self, step: int, last_step: int) -> None:
        """Begin at `step`; rich is imported only for a terminal, as it takes a tenth of a second."""
        if not (self.shown and on_terminal()):
            return
        self._bar = _make_bar()
        self._task = self._bar.add_task("", completed=step, total=last_step)
        self._bar.start()

    def step(self, step: int, brief: str, line: str | None) -> None:
        """Show one more step: `brief` beside the bar; without a bar, `line` is printed if there is one."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=brief)
        elif line is not None and not self._only_epochs:
            self.say(line)

    def phase(self, brief: str) -> None:
        """Show beside the bar what is done between two steps."""
        if self._bar is not None:
            self._bar.update(self._task, description=brief)

    def say(self, line: str) -> None:
        """A line for the user; names in it may come from files, so it is escaped (`shown`)."""
        line = shown(line)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        elif self.shown:
            print(line, flush=True)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _make_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    class Bar(RichProgress):
        """With an empty last line: Open MPI's mpirun passes on whole lines only, so the bar must end in one."""

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            yield ""

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=10), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.description}"))
