"""Arrays in one .npz file, as Keras (mnist.npz) and MedMNIST have them: a zip archive of .npy files."""

from __future__ import annotations

import argparse
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.files import file_sha256, open_regular

from .. import arrays
from ..arrays import ArrayStream, read_arrays
from ..bounded import DEFLATED, check_compression
from ..images import ImageData, ImageSource, set_name
from ..npy import npy_stream
from ..source_file import add_path_argument, errors_of
from ..spool import BLOCK

# What zipfile raises for a damaged archive.
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path_argument(parser, "FILE", "the .npz file")
    arrays.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for a file that is damaged or has other arrays."""
    path: Path = options.path
    with errors_of(path, (ValueError, *DAMAGED), ".npz file"):
        source = Provenance("npz", path.name, file_sha256(path))
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > DEFLATED * path.stat().st_size + BLOCK:
                raise DataError(f"unpacks to more than {DEFLATED:,} times its size: it may be hostile")
            held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

            @contextmanager
            def opened(name: str) -> Iterator[ArrayStream]:
                if held.count(name) > 1:
                    raise DataError(f"array {name} occurs twice")
                check_compression(archive.getinfo(f"{name}.npy"))
                with archive.open(f"{name}.npy") as stream, npy_stream(stream, name, DAMAGED) as array:
                    yield array  # zipfile checks the sum at the end of the stream

            return read_arrays(set_name(path), source, held, opened, options)


SOURCE = ImageSource(
    "npz",
    "pack the arrays of an .npz file",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_file() and path.suffix.lower() == ".npz",
    example="data/scans --from scans.npz --layout channels_last",
)
