"""IDX files, as of MNIST (LeCun et al. 1998), Fashion-MNIST, KMNIST and EMNIST.

    train-images-idx3-ubyte     the bytes 0, 0, 8, 3; the numbers of images, rows and columns; then the pixels
    train-labels-idx1-ubyte     the bytes 0, 0, 8, 1; the number of labels; then the labels
    t10k-images-idx3-ubyte ...  the same for the test split

Numbers are big-endian uint32, and 8 stands for unsigned bytes. The names may end with .gz, have a dot in the place of
the hyphen before idx, and begin with the name of the set, as in emnist-letters-train-images-idx3-ubyte.gz.
"""

from __future__ import annotations

import argparse
import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import LARGEST_IMAGE, Provenance
from dptrain.errors import DataError
from dptrain.system.files import open_regular
from dptrain.system.text import shown

from ..bounded import DEFLATED
from ..images import ImageData, ImageSource, LabelledImages, add_class_names, class_names
from ..source_file import add_path_argument, errors_of
from ..spool import BLOCK, Spool

DAMAGED = (EOFError, struct.error, zlib.error, gzip.BadGzipFile)
UNSIGNED_BYTES = 8
NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)[-_](?P<kind>images|labels)[-.]idx[13][-.]ubyte(?:\.gz)?", re.IGNORECASE
)
SPLIT_OF = {"train": "train", "t10k": "test", "test": "test"}
FILES = [(split, kind) for split in ("train", "test") for kind in ("images", "labels")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path_argument(parser, "FOLDER", "folder of the four files, such as train-images-idx3-ubyte.gz")
    add_class_names(parser)


def detects(path: Path) -> bool:
    """Whether a path is a folder with such files."""
    return path.is_dir() and any(NAME.fullmatch(entry.name) for entry in path.iterdir())


def read_idx(folder: Path, out: Path, classes: str | None = None) -> ImageData:
    """Both splits, stored on the disk of `out`; DataError for files that are missing, damaged or do not fit."""
    with errors_of(folder):
        name, paths = _find(folder)
    splits: dict[str, Any] = {}
    for split in ("train", "test"):
        images = _read_images(paths[split, "images"], out)
        splits[split] = LabelledImages(images, _read_labels(paths[split, "labels"], len(images)))
    names = class_names(classes, *(split.labels for split in splits.values()))
    return ImageData(name, names, **splits, source=Provenance("idx"), layout="channels_first")


SOURCE = ImageSource(
    "idx",
    "pack IDX files, as of MNIST and Fashion-MNIST",
    add_arguments,
    lambda options: read_idx(options.path, options.folder, options.classes),
    path_flag="--from",
    detects=detects,
    example="data/mnist --from mnist/ --validation-fraction 0.1",
)


def _find(folder: Path) -> tuple[str, dict[tuple[str, str], Path]]:
    """The name of the set, and the path of each of `FILES`; of a file and the same with .gz the first."""
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name.lower(), reverse=True):  # NAME.gz, then NAME
        found = NAME.fullmatch(path.name)
        if found and not path.name.startswith("."):  # macOS keeps a second file ._NAME for some files
            files = sets.setdefault(found["set"], {})
            key = SPLIT_OF[found["split"].lower()], found["kind"].lower()
            if key in files and files[key].name.lower() != f"{path.name.lower()}.gz":
                same = f"{files[key].name} and {path.name}"
                raise DataError(f"{shown(same)} are the same part of a set")
            files[key] = path
    if len(sets) > 1:
        names = ", ".join(f"{name}*" if name else "without a prefix" for name in sorted(sets))
        raise DataError(f"files of {len(sets)} sets ({shown(names, 200)}); give each a folder")
    (name, paths), *_ = [*sets.items(), ("", {})]
    missing = [f"{'train' if split == 'train' else 't10k'}-{kind}-idx*-ubyte" for split, kind in FILES]
    missing = [pattern for pattern, file in zip(missing, FILES, strict=True) if file not in paths]
    if missing:
        raise DataError(f"no {', '.join(missing)} (with or without .gz)")
    return name.strip("-_.") or folder.resolve().name or "idx", paths


@contextmanager
def _opened(path: Path, lengths: int) -> Iterator[tuple[BufferedIOBase, tuple[int, ...]]]:
    """The file after its header, and the lengths in the header; DataError for a damaged file."""
    with errors_of(path, DAMAGED, "IDX file"):
        packed = path.suffix.lower() == ".gz"
        with open_regular(path) as file, gzip.open(file) if packed else file as content:
            start = content.read(4)
            if start != bytes((0, 0, UNSIGNED_BYTES, lengths)):
                expected = f"0 0 {UNSIGNED_BYTES} {lengths}"
                raise DataError(f"begins with {shown(' '.join(map(str, start)) or 'nothing')}, expected {expected}")
            yield content, struct.unpack(f">{lengths}I", content.read(4 * lengths))
            if content.read(1):
                raise DataError("has more bytes than its header states")


def _read_images(path: Path, out: Path) -> Spool:
    with _opened(path, 3) as (content, (count, height, width)):
        if not (count and 0 < height * width <= LARGEST_IMAGE):
            raise DataError(f"its header states {count:,} images of {height} x {width} pixels")
        if count * height * width > DEFLATED * path.stat().st_size + BLOCK:
            raise DataError(f"its header states {count:,} images of {height} x {width} pixels, more than it can hold")
        spool = Spool(out, (1, height, width))
        if (read := spool.read_from(content, count)) < count:
            raise DataError(f"ends after {read:,} of {count:,} images")
    return spool


def _read_labels(path: Path, images: int) -> NDArray[np.uint8]:
    with _opened(path, 1) as (content, (count,)):
        if count != images:
            raise DataError(f"its header states {count:,} labels for {images:,} images")
        labels = content.read(count)
        if len(labels) != count:
            raise DataError(f"ends after {len(labels):,} of {count:,} labels")
    return np.frombuffer(labels, np.uint8)
