"""A run folder for the tests of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dptrain.checkpoint.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    folder.write_config("lr = 0.1\n")
    yield folder
    folder.close()
