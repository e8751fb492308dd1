"""CIFAR-10: 60,000 colour images of 32x32 pixels in ten classes."""

from __future__ import annotations

import argparse

from ..cifar import Contents, add_archive_argument, is_archive, read_archive
from ..download import find_archive
from ..images import ImageSource

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
VARIABLE = "DPTRAIN_CIFAR10_ARCHIVE"
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
CONTENTS = Contents(
    name="cifar10",
    title="CIFAR-10",
    binary=tuple(f"cifar-10-batches-bin/{name}" for name in ("batches.meta.txt", *(f"{one}.bin" for one in BATCHES))),
    pickled=tuple(f"cifar-10-batches-py/{name}" for name in ("batches.meta", *BATCHES)),
    samples=(10_000,) * len(BATCHES),
    published_sha256=(SHA256, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_archive_argument(parser, "cifar-10", VARIABLE, URL)
    parser.add_argument(
        "--optional", action="store_true", help="if the server cannot be reached, print a note instead of an error"
    )


SOURCE = ImageSource(
    "cifar10",
    "pack CIFAR-10 from a published archive",
    add_arguments,
    lambda options: read_archive(find_archive(options.archive, VARIABLE, URL, SHA256), CONTENTS, options.folder),
    path_flag="--archive",
    detects=lambda path: is_archive(path, "cifar-10"),
    example="data/cifar10 --archive cifar-10-binary.tar.gz",
)
