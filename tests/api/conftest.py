"""A small data set of grey pictures, and runs of a program on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_runs import Trained, build
from training_runs import packed

from dptrain import Run, train


@pytest.fixture(scope="session")
def api_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("api") / "set", shape=(1, 6, 7))


@pytest.fixture
def trained(api_data: Path, tmp_path: Path) -> Trained:
    """A run of two epochs of 7 steps with the function `build`, without output; options change it."""

    def run(**changes: Any) -> Run:
        options: dict[str, Any] = {"model": build, "epochs": 2, "batch_size": 16, "threads": 1, "log_every": 1}
        options |= {"run_dir": tmp_path / "run", "output": "none", "report": False}
        return train(api_data, **(options | changes))

    return run
