"""launch.job: what the launcher reads from the trainer's command line and run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.errors import UsageError
from launch.job import Progress, newest_step, settings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train data", {}),
        ("train data --run-dir a --lr 1", {"run_dir": "a"}),
        ("train data --run-dir=a --run-dir=b", {"run_dir": "b"}),
        ("train --config CONFIG", {"run_dir": "from/toml", "elastic": True, "lr": 1.0}),
        ("train --config=CONFIG --run-dir a", {"run_dir": "a", "elastic": True, "lr": 1.0}),
        ("train --config CONFIG --no-elastic", {"run_dir": "from/toml", "elastic": False, "lr": 1.0}),
        ("train --elastic --no-elastic", {"elastic": False}),
        ("train --no-elastic --elastic --resume x.h5", {"elastic": True, "resume": "x.h5"}),
        ("train data --run-dir", {}),  # the trainer reports it
        ("eval --run-dir a", {}),
    ],
)
def test_settings_are_those_that_train_would_use(words: str, expected: dict[str, object], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('run-dir = "from/toml"\nelastic = true\nlr = 1\n')
    assert settings(words.replace("CONFIG", str(config)).split()) == expected


def test_a_config_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        settings(["train", "--config", str(tmp_path / "none.toml")])


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (3, 99_999_999, 20, 100_000_000, 100, 7, 12):
        (folder / f"step-{step:08d}.h5").touch()
    for name in ("step-abc.h5", ".step-200000000.h5.partial", "step-00000021.h5.bak"):
        (folder / name).touch()
    assert newest_step(tmp_path) == 100_000_000


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ('{"event": "step", "step": 8}\n', True),
        ('{"event": "epoch", "step": 8}\n', True),
        ('{"event": "start", "step": 7}\n', False),
        ("", False),
    ],
)
def test_a_logged_step_is_progress_and_a_start_is_not(added: str, expected: bool, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"event": "step", "step": 7}\n' * 5000)
    before = Progress.of(tmp_path)
    with metrics.open("a") as file:
        file.write(added)
    assert before.is_exceeded(tmp_path) is expected


def test_a_newer_checkpoint_is_progress(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    none = Progress.of(tmp_path)
    assert not none.is_exceeded(tmp_path)
    (tmp_path / "checkpoints" / "step-00000000.h5").touch()
    assert none.is_exceeded(tmp_path)
    assert not Progress.of(tmp_path).is_exceeded(tmp_path)
