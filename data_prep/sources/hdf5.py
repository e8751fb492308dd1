"""Arrays in an HDF5 file of another program, by their paths in the file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from .. import arrays
from ..arrays import ArrayStream, read_arrays
from ..hdf5_stream import array_names, npy_bytes
from ..images import ImageData, ImageSource, set_name
from ..npy import npy_stream

SUFFIXES = (".h5", ".hdf5", ".hdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="path", type=path_argument, required=True, metavar="FILE", help="the HDF5 file")
    arrays.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for a file that is damaged or has other arrays."""
    path: Path = options.path

    @contextmanager
    def opened(name: str) -> Iterator[ArrayStream]:
        with npy_bytes(path, name) as stream, npy_stream(stream, name) as array:
            yield array

    try:
        source = Provenance("hdf5", path.name, file_sha256(path))
        return read_arrays(set_name(path), source, array_names(path), opened, options)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from error


SOURCE = ImageSource(
    "hdf5",
    "pack the arrays of an HDF5 file",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_file() and path.suffix.lower() in SUFFIXES,
)
