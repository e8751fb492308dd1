"""Arrays in a folder of .npy files, named as the arrays of an .npz file: x_train.npy, y_train.npy and so on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.files import open_regular

from .. import arrays
from ..arrays import ArrayStream, read_arrays
from ..images import ImageData, ImageSource, set_name
from ..npy import npy_stream
from ..source_file import add_path_argument, errors_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path_argument(parser, "FOLDER", "the folder of the .npy files")
    arrays.add_arguments(parser)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".npy" and path.name[0] != "."]


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for files that are missing or damaged."""
    path: Path = options.path
    with errors_of(path):
        files = _files(path)
        names = [file.stem for file in files]

        @contextmanager
        def opened(name: str) -> Iterator[ArrayStream]:
            if names.count(name) > 1:
                raise DataError(f"array {name} occurs twice")
            with open_regular(files[names.index(name)]) as stream, npy_stream(stream, name) as array:
                yield array

        return read_arrays(set_name(path), Provenance("npy"), names, opened, options)


SOURCE = ImageSource(
    "npy",
    "pack the arrays of a folder of .npy files",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_dir() and bool(_files(path)),
    example="data/scans --from scans/",
)
