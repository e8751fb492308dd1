"""Small CIFAR-10 archives that are read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import SMALL_CIFAR10

from data_prep.cifar import read_archive
from data_prep.pack import ImageData
from dptrain.errors import DataError

FIRST_BIN = "cifar-10-batches-bin/data_batch_1.bin"
FIRST_PY = "cifar-10-batches-py/data_batch_1"
META_PY = "cifar-10-batches-py/batches.meta"


def read(path: Path) -> ImageData:
    return read_archive(path, SMALL_CIFAR10, path.parent)


def refused(path: Path) -> str:
    """The error for an archive, with the archive's path."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)
