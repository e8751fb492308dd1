"""Pictures that a table names: rows of a path and a class, and perhaps of a split (train, test or validation).

    path,label,split        this first row is optional
    photos/001.jpg,cat,train

Paths are relative to the folder of the table, or to --root. The text is UTF-8; a name of other bytes is kept.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from dptrain.data.manifest import Provenance
from dptrain.errors import DataError
from dptrain.system.arguments import path_argument
from dptrain.system.files import file_sha256, open_regular
from dptrain.system.text import counted, shown

from ..images import ImageData, ImageSource, set_name
from ..pictures import reading
from ..pictures.classes import SPLIT_FOLDERS, Picture
from ..pictures.containers import Container
from ..source_file import add_path_argument, errors_of

LONGEST_LINE = 1 << 16  # bytes
COLUMNS = ("path", "label", "split")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path_argument(parser, "FILE", "the .csv file")
    parser.add_argument(
        "--root", type=path_argument, metavar="FOLDER", help="where its paths begin (default: the folder of the file)"
    )
    parser.add_argument(
        "--classes", metavar="NAME,...", help="the classes in their order (default: by number or by letter)"
    )
    reading.add_arguments(parser)


def read(options: argparse.Namespace) -> ImageData:
    """All splits, stored on the disk of the data set; DataError for a table that cannot be read."""
    path: Path = options.path
    root = options.root or path.parent
    with errors_of(path):
        pictures = _pictures(path)
        source = Provenance("csv", path.name, file_sha256(path))
    files = [picture.name for picture in pictures]
    container = Container(files, [], lambda numbers: ((n, os.path.join(root, files[n])) for n in numbers))  # noqa: PTH118 - quicker
    classes = () if options.classes is None else options.classes.split(",")
    return reading.read_pictures(set_name(path), source, container, pictures, options, classes)


def _lines(file: IO[bytes]) -> Iterator[str]:
    """The lines of the table; DataError for a line that is too long."""
    for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b"")):
        if not number and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError("the text is UTF-16, expected UTF-8; save the table as CSV in UTF-8")
        if len(line) > LONGEST_LINE:
            raise DataError(f"line {number + 1:,} has more than {LONGEST_LINE:,} bytes: not a table of paths")
        yield line.decode("utf-8" if number else "utf-8-sig", "surrogateescape")


def _rows(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The rows of the table, each with the number of its last line; DataError for quotes that do not match."""
    rows, first = csv.reader(_lines(file), strict=True), 1
    try:
        for row in rows:
            yield rows.line_num, row
            first = rows.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            raise DataError(f"line {first:,} has a carriage return alone; save the table with LF line ends") from error
        raise DataError(
            f"line {first:,}: {shown(error, 200)}; a cell that begins with a quote ends with one, and a quote in it is "
            "written twice"
        ) from error


def _pictures(path: Path) -> list[Picture]:
    """The rows of the table; DataError, with the number of the line, for one that is not valid."""
    pictures: list[Picture] = []
    seen: set[str] = set()
    with open_regular(path) as file:
        for line, row in _rows(file):
            if not row or (line == 1 and tuple(cell.strip().lower() for cell in row) == COLUMNS[: len(row)]):
                continue
            if len(row) not in (2, 3):
                raise DataError(
                    f"line {line:,} has {counted(len(row), 'column')}, expected path,label or path,label,split"
                )
            name, label, split = (*row, "")[:3]
            if split and split.strip().lower() not in SPLIT_FOLDERS:
                expected = ", ".join(SPLIT_FOLDERS)
                raise DataError(f"line {line:,}: the split is {shown(repr(split), 80)}, expected {expected}")
            if not name or "\0" in name or not label.strip():
                raise DataError(f"line {line:,}: a path or a label is missing")
            if name in seen:
                raise DataError(f"line {line:,}: {shown(name, 300)} occurs twice")
            seen.add(name)
            pictures.append(Picture(len(pictures), name, label.strip(), SPLIT_FOLDERS.get(split.strip().lower(), "")))
    if not pictures:
        raise DataError("it has no rows of path,label")
    if len({bool(picture.split) for picture in pictures}) > 1:
        raise DataError("some rows have a split and others have none")
    return pictures


SOURCE = ImageSource(
    "csv",
    "pack pictures that a table of paths and classes names",
    add_arguments,
    read,
    path_flag="--from",
    detects=lambda path: path.is_file() and path.suffix.lower() == ".csv",
    example="data/pets --from pets.csv --size 64 64",
)
