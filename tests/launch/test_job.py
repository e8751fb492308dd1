"""launch.supervise: what the launcher reads from the trainer's command line and run folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dptrain.errors import UsageError
from launch.supervise import progress, settings


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


def test_progress_is_the_step_of_the_newest_checkpoint_and_the_number_of_logged_steps(tmp_path: Path) -> None:
    assert progress(None) == progress(tmp_path) == (-1, 0)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (3, 99_999_999, 20, 100_000_000, 100, 7, 12):
        (folder / f"step-{step:08d}.h5").touch()
    for name in ("step-abc.h5", ".step-200000000.h5.partial", "step-00000021.h5.bak"):
        (folder / name).touch()
    events = [f'{{"event": "{event}", "step": 8}}\n' for event in ("start", "step", "epoch")]
    (tmp_path / "metrics.jsonl").write_text("".join(events))
    assert progress(tmp_path) == (100_000_000, 2)


def test_progress_does_not_wait_for_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    assert progress(tmp_path) == (-1, 0)
