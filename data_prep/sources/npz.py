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
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256, open_regular
from dptrain.system.text import shown

from .. import arrays
from ..arrays import ArrayStream, read_arrays
from ..images import ImageData, ImageSource, set_name
from ..npy import npy_stream
from ..pictures.containers import COMPRESSED
from ..spool import BLOCK

MOST_UNPACKED = 1032  # times the size of a file: the most that deflate can reach
# What zipfile raises for a damaged archive, one with a password, or one of an unknown method.
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="path", type=path_argument, required=True, metavar="FILE", help="the .npz file")
    arrays.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for a file that is damaged or has other arrays."""
    path: Path = options.path
    try:
        source = Provenance("npz", path.name, file_sha256(path))
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_UNPACKED * path.stat().st_size + BLOCK:
                raise DataError(f"unpacks to more than {MOST_UNPACKED:,} times its size: it may be hostile")
            held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

            @contextmanager
            def opened(name: str) -> Iterator[ArrayStream]:
                if held.count(name) > 1:
                    raise DataError(f"array {name} occurs twice")
                if archive.getinfo(f"{name}.npy").compress_type not in COMPRESSED:
                    raise zipfile.BadZipFile("compressed by another method than deflate")
                with archive.open(f"{name}.npy") as stream, npy_stream(stream, name, DAMAGED) as array:
                    yield array  # zipfile checks the sum at the end of the stream

            return read_arrays(set_name(path), source, held, opened, options)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from error
    except (ValueError, *DAMAGED) as error:
        reason = shown(str(error) or "ends too early", 200)
        raise DataError(f"{shown(path)}: not a readable .npz file, damaged or truncated: {reason}") from error


SOURCE = ImageSource(
    "npz",
    "pack the arrays of an .npz file",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_file() and path.suffix == ".npz",
)
