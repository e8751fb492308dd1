"""launch.job: what the launcher reads from the trainer's command line and run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.errors import UsageError
from launch.job import is_elastic, newest_step, run_dir_of


def test_the_run_folder_is_found_wherever_train_would_find_it(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('run-dir = "from/toml"\nlr = 1\n')
    assert run_dir_of(["train", "data"]) is None
    assert run_dir_of(["train", "data", "--run-dir", "a"]) == Path("a")
    assert run_dir_of(["train", "data", "--run-dir=a", "--run-dir=b"]) == Path("b")
    assert run_dir_of(["train", "--config", str(config)]) == Path("from/toml")
    assert run_dir_of(["train", f"--config={config}", "--run-dir", "a"]) == Path("a")
    assert run_dir_of(["train", "data", "--run-dir"]) is None


def test_a_config_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        run_dir_of(["train", "--config", str(tmp_path / "none.toml")])


def test_the_last_word_on_elastic_counts_or_else_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("elastic = true\n")
    assert is_elastic(["train", "--config", str(config)])
    assert not is_elastic(["train", "--config", str(config), "--no-elastic"])
    assert not is_elastic(["train"])
    assert is_elastic(["train", "--no-elastic", "--elastic"])
    assert not is_elastic(["train", "--elastic", "--no-elastic"])


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    assert newest_step(tmp_path) is None
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (3, 99_999_999, 20, 100_000_000, 100, 7, 12):
        (folder / f"step-{step:08d}.h5").touch()
    for name in ("step-abc.h5", ".step-200000000.h5.partial", "step-00000021.h5.bak"):
        (folder / name).touch()
    assert newest_step(tmp_path) == 100_000_000
