"""Progress bars on stderr, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(description: str, total: int, *, size_in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; gives the function that advances it by a number of units."""
    if not sys.stderr.isatty():
        yield lambda _units: None
        return
    # Imported here because it costs a tenth of a second of start-up time.
    from rich import progress as rich_progress
    from rich.console import Console

    count: rich_progress.ProgressColumn = (
        rich_progress.DownloadColumn() if size_in_bytes else rich_progress.MofNCompleteColumn()
    )
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        count,
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda units: bar.advance(task, units)
