"""The file or folder that a user names for a source: its argument, and the errors of reading it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.text import shown


def add_path_argument(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """The argument --from, as `path`."""
    parser.add_argument("--from", dest="path", type=path_argument, required=True, metavar=metavar, help=help)


@contextmanager
def errors_of(path: Path, damaged: tuple[type[Exception], ...] = (), kind: str = "file") -> Iterator[None]:
    """Raise a DataError that begins with the path, for an OSError, a DataError or one of `damaged` in the block.

    `damaged` are what a reader raises for a file that is not complete; `kind` is what was expected, such as "archive".
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from error
    except damaged as error:  # before OSError: gzip.BadGzipFile is one
        reason = shown(str(error) or "it ends too early", 200)
        raise DataError(f"{shown(path)}: not a complete {kind}, damaged or truncated: {reason}") from error
    except OSError as error:
        raise DataError(f"{shown(error.filename or path)}: cannot be read: {error.strerror or error}") from error
