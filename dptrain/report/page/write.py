"""Writes the page of a run, or of several, as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dptrain.report.page.compare import compare_page
from dptrain.report.page.facts import DEFAULTS, PageOptions, facts_of, summary_of
from dptrain.report.page.run import run_page
from dptrain.system.outputs import write_output
from dptrain.training.predictions import Predictions

NAME = "report.html"  # in the run folder


def write_report(
    folder: Path, output: Path | None = None, options: PageOptions = DEFAULTS, predictions: Predictions | None = None
) -> Path:
    """Write the page of the run in a folder, by default into that folder; returns the path of the page.

    `predictions` are those of the newest checkpoint. DataError if there is no run, UsageError if the page cannot be
    written.
    """
    return _write(output or folder / NAME, run_page(facts_of(folder, options, predictions)))


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write the page that compares the runs in some folders; errors as in `write_report`."""
    return _write(output, compare_page([summary_of(folder) for folder in folders]))


def _write(path: Path, text: str) -> Path:
    write_output(path, text.encode(), "--output")
    return path
