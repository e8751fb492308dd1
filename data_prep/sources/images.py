"""Pictures in a folder for each class: PNG, JPEG, WebP and GIF files in a folder, a zip archive or a tar archive."""

from __future__ import annotations

import argparse
from pathlib import Path

from dptrain.data.manifest import LONGEST_NAME, Provenance
from dptrain.system.files import file_sha256
from dptrain.system.text import shown

from .. import report
from ..images import ImageData, ImageSource
from ..pictures import reading
from ..pictures.classes import find_pictures
from ..pictures.containers import is_archive, opened, stem
from ..pictures.decode import is_picture
from ..source_file import add_path_argument, errors_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "a folder with a folder for each class, or with train/ and test/ above them; or a .zip or .tar of it"
    add_path_argument(parser, "PATH", text)
    reading.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for what cannot be read."""
    path = options.path
    with errors_of(path):
        archive = not path.is_dir()
        source = Provenance("images", path.name, file_sha256(path)) if archive else Provenance("images")
    with opened(path) as container:
        with errors_of(path):
            pictures, notes = find_pictures(container)
        for note in notes:
            report(f"note: {note}")
        name = shown(stem(path), LONGEST_NAME).strip() or "images"
        return reading.read_pictures(name, source, container, pictures, options)


def _detects(path: Path) -> bool:
    return is_archive(path) or (
        path.is_dir() and any(entry.is_dir() or is_picture(entry.name) for entry in path.iterdir())
    )


SOURCE = ImageSource(
    "images",
    "pack pictures from a folder, a zip or a tar archive",
    add_arguments,
    read,
    path_flag="--from",
    detects=_detects,
    example="data/pets --from pets.zip --size 64 64 --fit pad",
)
