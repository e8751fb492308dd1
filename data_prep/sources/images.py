"""Pictures in a folder for each class: PNG, JPEG, WebP and GIF files in a folder, a zip archive or a tar archive."""

from __future__ import annotations

import argparse
from pathlib import Path

from dptrain.data.manifest import LONGEST_NAME, Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from .. import report
from ..images import ImageData, ImageSource
from ..pictures import reading
from ..pictures.classes import find_pictures
from ..pictures.containers import is_archive, opened, stem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="path",
        type=path_argument,
        required=True,
        metavar="PATH",
        help="a folder with a folder for each class, or with train/ and test/ above them; or a .zip or .tar of it",
    )
    reading.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for what cannot be read."""
    path = options.path
    try:
        archive = not path.is_dir()
        source = Provenance("images", path.name, file_sha256(path)) if archive else Provenance("images")
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    with opened(path) as container:
        try:
            pictures, notes = find_pictures(container)
        except DataError as error:
            raise DataError(f"{shown(path)}: {error}") from error
        for note in notes:
            report(f"note: {note}")
        name = shown(stem(path), LONGEST_NAME).strip() or "images"
        return reading.read_pictures(name, source, container, pictures, options)


def _detects(path: Path) -> bool:
    return is_archive(path) or (path.is_dir() and any(entry.is_dir() for entry in path.iterdir()))


SOURCE = ImageSource(
    "images",
    "pack pictures from a folder, a zip or a tar archive",
    add_arguments,
    read,
    path_flag="--from",
    detects=_detects,
)
