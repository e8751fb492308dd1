"""A data set and a finished run for the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import configuration, packed, run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("commands") / "set")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(configuration(data, folder))
    return folder
