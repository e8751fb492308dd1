"""Arrays in an HDF5 file of another program, by their paths in the file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.data.manifest import Provenance
from dptrain.system.files import file_sha256

from .. import arrays
from ..arrays import ArrayStream, read_arrays
from ..hdf5_stream import array_names, npy_bytes
from ..images import ImageData, ImageSource, set_name
from ..npy import npy_stream
from ..source_file import add_path_argument, errors_of

SUFFIXES = (".h5", ".hdf5", ".hdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path_argument(parser, "FILE", "the HDF5 file")
    arrays.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for a file that is damaged or has other arrays."""
    path: Path = options.path

    @contextmanager
    def opened(name: str) -> Iterator[ArrayStream]:
        with npy_bytes(path, name) as stream, npy_stream(stream, name) as array:
            yield array

    with errors_of(path):
        source = Provenance("hdf5", path.name, file_sha256(path))
        return read_arrays(set_name(path), source, array_names(path), opened, options)


SOURCE = ImageSource(
    "hdf5",
    "pack the arrays of an HDF5 file",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_file() and path.suffix.lower() in SUFFIXES,
    example="data/scans --from scans.h5 --arrays images,labels",
)
