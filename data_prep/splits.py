"""The splits that a user asks for: a test split, a validation split, and fewer samples of each.

They follow from labels and options alone, so that a source can check the options before it reads images.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import SPLITS
from dptrain.errors import UsageError
from dptrain.system.arguments import share
from dptrain.system.text import counted

from .draw import choose, split_off

SHARDS = (8, 4, 2, 1)  # the first that every split allows, unless a number is given; each divides a usual batch size
TEST_FRACTION = 0.2
TEST_SHARE = 5  # training samples per test sample in a limited data set, as in CIFAR-10


def add_test_fraction(parser: argparse.ArgumentParser) -> None:
    """The argument of a source that may have no test split."""
    parser.add_argument(
        "--test-fraction",
        type=share,
        metavar="F",
        help=f"without a test split: this share of each class becomes the test split (default: {TEST_FRACTION})",
    )


def check_no_split_is_there(given: Collection[str], options: argparse.Namespace) -> None:
    """UsageError if the options ask to draw a split that the source has already (`given`)."""
    for split in ("test", "validation"):
        if split in given and getattr(options, f"{split}_fraction") is not None:
            raise UsageError(f"--{split}-fraction: there is a {split} split already")


def drawn_test_split(labels: NDArray[np.int64], options: argparse.Namespace) -> NDArray[np.bool_]:
    """Which samples with these labels (n,) become the test split of a source without one, bool (n,)."""
    fraction = TEST_FRACTION if options.test_fraction is None else options.test_fraction
    return split_off(labels, fraction, options.seed, SPLITS.index("test"))


def most_shards(labels: Mapping[str, NDArray[np.int64]], **options: Any) -> int:
    """The largest of SHARDS with which every shard has a sample, for the arguments of `choose_rows`."""
    for shards in SHARDS:
        with suppress(UsageError):
            choose_rows(labels, shards=shards, **options)
            return shards
    return SHARDS[-1]


def choose_rows(
    labels: Mapping[str, NDArray[np.int64]],
    *,
    shards: int,
    limit: int | None,
    validation_fraction: float | None,
    seed: int,
) -> dict[str, NDArray[np.intp]]:
    """The rows of each split that are packed, from the labels (n,) of the source's splits.

    Those of a validation split that is drawn are rows of the training split. UsageError for options that do not fit
    the splits, or leave a shard without a sample.
    """
    rows = {split: np.arange(len(one)) for split, one in labels.items()}
    if validation_fraction is not None:
        if "validation" in labels:
            raise UsageError("--validation-fraction: there is a validation split already")
        apart = split_off(labels["train"], validation_fraction, seed, SPLITS.index("validation"))
        rows["train"], rows["validation"] = np.flatnonzero(~apart), np.flatnonzero(apart)
    for split in rows:
        most = limit if split == "train" or limit is None else max(limit // TEST_SHARE, shards)
        candidates = labels.get(split, labels["train"])[rows[split]]
        rows[split] = rows[split][choose(candidates, most, seed, SPLITS.index(split))]
        if not len(rows[split]):
            raise UsageError(
                f"the {split} split has no samples; to draw one, a class needs at least 2 training samples"
            )
        if not 1 <= shards <= len(rows[split]):
            raise UsageError(
                f"--shards {shards}: the {split} split has {counted(len(rows[split]), 'sample')} and every shard "
                f"needs at least one; choose from 1 to {len(rows[split]):,}"
            )
    return rows
