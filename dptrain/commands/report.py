"""`dptrain report`: an HTML page of a run, or one that compares several."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.config.files import add_flags, read_toml
from dptrain.config.train import model_name
from dptrain.errors import DptrainError, UsageError
from dptrain.system.arguments import Parser, argument, path_argument
from dptrain.system.blas import request_portable_kernels
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.parallel.communicator import Communicator

COMPARISON = Path("comparison.html")


EXAMPLES = """
examples:
  dptrain report runs/one             writes runs/one/report.html
  dptrain report runs/one runs/two    compares runs in comparison.html
"""


def add_arguments(parser: Parser) -> None:
    """Add the run folders and the flags."""
    parser.add_argument("runs", type=path_argument, nargs="+", metavar="RUN", help="run folder; several are compared")
    help = f"file to write (default: report.html in the run folder; for several runs {COMPARISON})"
    parser.add_argument("--output", type=path_argument, metavar="FILE", help=help)
    help = "the data set of the run, if it has moved"
    parser.add_argument("--data", type=path_argument, metavar="DATA", help=help)
    help = "FILE.py:FUNCTION, for a run with a model of your own"
    parser.add_argument("--model", type=argument(model_name), default="", metavar="NAME", help=help)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_flags(parser, ["threads"], defaults=True)


def prepare(parsed: argparse.Namespace) -> None:
    """Choose the kernels of a run with --portable before NumPy is imported."""
    with contextlib.suppress(DptrainError):  # reported by the page
        if len(parsed.runs) == 1 and read_toml(parsed.runs[0] / "config.toml").get("portable"):
            request_portable_kernels()


def run(parsed: argparse.Namespace, communicator: Communicator, connection: str) -> int:
    """Write the page; returns the exit status."""
    from dptrain.parallel.communicator import together

    with together(communicator):
        if communicator.rank == 0:
            path = write(parsed, threads=1 if communicator.uses_mpi else parsed.threads)
            print(json.dumps({"report": str(path)}) if parsed.json else f"report  {shown(path)}")
    return 0


def write(parsed: argparse.Namespace, threads: int) -> Path:
    """Write the page; returns its path."""
    from dptrain.report.page.facts import PageOptions
    from dptrain.report.page.write import write_comparison, write_report

    if len(parsed.runs) == 1:
        options = PageOptions("" if parsed.data is None else str(parsed.data), parsed.model, threads)
        return write_report(parsed.runs[0], parsed.output, options)
    if parsed.data is not None or parsed.model:
        raise UsageError("--data and --model are for the page of one run: a comparison evaluates nothing")
    return write_comparison(parsed.runs, parsed.output or COMPARISON)
