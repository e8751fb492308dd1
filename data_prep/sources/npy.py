"""Arrays in a folder of .npy files, named as the arrays of an .npz file: x_train.npy, y_train.npy and so on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import open_regular
from dptrain.system.text import shown

from .. import arrays
from ..arrays import ArrayStream, read_arrays
from ..images import ImageData, ImageSource, set_name
from ..npy import npy_stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="path", type=path_argument, required=True, metavar="FOLDER", help="the folder of the .npy files"
    )
    arrays.add_arguments(parser)


def _names(folder: Path) -> list[str]:
    return [path.stem for path in sorted(folder.glob("*.npy"))]


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for files that are missing or damaged."""
    path: Path = options.path

    @contextmanager
    def opened(name: str) -> Iterator[ArrayStream]:
        with open_regular(path / f"{name}.npy") as stream, npy_stream(stream, name) as array:
            yield array

    try:
        return read_arrays(set_name(path), Provenance("npy"), _names(path), opened, options)
    except OSError as error:
        raise DataError(f"{shown(error.filename or path)}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from error


SOURCE = ImageSource(
    "npy",
    "pack the arrays of a folder of .npy files",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_dir() and bool(_names(path)),
)
