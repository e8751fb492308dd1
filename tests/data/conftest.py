"""Data sets for the tests of the data package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_sets import image_data

from data_prep.pack import pack

OLD = Path(__file__).parents[1] / "fixtures" / "version-1" / "data-set"  # packed by dptrain 0.1.0 with h5py 3.11.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack(tmp_path / "set", image_data(), shards=2)
    return tmp_path / "set"


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A data set of version 1, whose shards libhdf5 wrote."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))
