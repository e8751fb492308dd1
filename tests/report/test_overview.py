"""dptrain.report.overview and pace: the facts at the start, the results, and the next commands of a run."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from command_runs import train_here
from data_sets import image_data
from training_runs import packed

from data_prep.pack import pack
from dptrain.commands.main import main
from dptrain.report.overview import clock, duration, lines_of, next_commands, start_rows
from dptrain.report.pace import Pace
from dptrain.training.events import RunFacts

FACTS = RunFacts("runs/one", "data/set", 1010, 370, (3, 6, 7), 5, 8, "convnet", 12345, epochs=2, steps_per_epoch=7,
                 last_step=14, ranks=3, threads=2, connection="3 ranks (MPI)", mpi="MPI", batch_size=160,
                 hosts=("a", "b", "a"))  # fmt: skip


def test_the_start_has_all_facts_of_the_run() -> None:
    rows = dict(start_rows(FACTS, 3, "runs/old/step.h5"))
    assert rows == {
        "run folder": "runs/one, from runs/old/step.h5 (step 3)",
        "data set": "data/set: 1,010 training and 370 test images 3x6x7, 5 classes",
        "network": "convnet: 12,345 parameters",
        "ranks": "3 ranks (MPI)",
        "hosts": "2: a (2 ranks), b (1 rank)",
        "threads": "2 shards at a time on each rank",
        "shards": "8, 2 to 3 on each rank",
        "steps": "14 in all, 7 an epoch",
        "global batch": "160 images, 20 of each shard",
    }
    alone = dict(start_rows(FACTS._replace(ranks=1, hosts=("here",), batch_size=8), 0, None))
    assert (alone["run folder"], alone["host"], alone["shards"]) == ("runs/one", "here", "8")
    assert alone["threads"] == "2 shards at a time"
    assert alone["global batch"] == "8 images, 1 of each shard"


def test_names_are_escaped_in_lines() -> None:
    assert lines_of([("a", "x\x1b[2Jy"), ("longer", "z")]) == ["a       x\\x1b[2Jy", "longer  z"]


def test_the_next_commands_are_quoted_for_a_shell() -> None:
    odd = FACTS._replace(run_dir="runs/it's $HOME; ok", data="a set")
    for _, command in next_commands(odd, 14):
        words = shlex.split(command)
        assert words[0] == "dptrain"
        assert "runs/it's $HOME; ok" in words
    texts = dict(next_commands(odd, 14))
    assert shlex.split(texts["accuracy by class"])[1:] == ["eval", "runs/it's $HOME; ok", "a set"]
    own = dict(next_commands(FACTS._replace(model="my net.py:build"), 14))
    assert shlex.split(own["accuracy by class"])[-2:] == ["--model", "my net.py:build"]
    again = shlex.split(texts["resume for 2 more epochs"])
    assert again[1:7] == ["launch", "-n", "3", "--", "train", "--config"]
    assert again[-2:] == ["--epochs", "4"]
    stopped = dict(next_commands(FACTS._replace(last_step=9, ranks=1), 9))
    assert shlex.split(stopped["resume up to epoch 2"])[-2:] == ["--max-steps", "0"]
    by_callback = dict(next_commands(FACTS._replace(ranks=1), 7))
    assert shlex.split(by_callback["resume up to step 14"])[-2:] == ["--run-dir", "runs/one"]


@pytest.mark.slow
def test_the_next_command_after_early_stopping_makes_the_other_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "set", replace(image_data(), validation=image_data().test), shards=4)
    out = train_here(tmp_path / "set", tmp_path / "run", epochs=6, early_stop=1, lr=1e-9).stdout
    last = int(re.search(r"steps +(\d+) in all", out)[1])  # type: ignore[index]
    assert "stopped early" in out
    command = out.splitlines()[-1].split("dptrain ", 1)[1]
    capsys.readouterr()
    assert main(shlex.split(command)) == 0
    assert f"checkpoints/step-{last:08}.h5\n" in capsys.readouterr().out


@pytest.mark.slow
def test_the_next_commands_of_a_run_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = packed(tmp_path / "a set")
    out = train_here(data, tmp_path / "my run", max_steps=3).stdout
    for reached in (14, 28):  # first to the end of the epochs, then for as many more
        commands = [line.split("dptrain ", 1)[1] for line in out.split("\nnext:\n")[1].splitlines()]
        assert [command.split()[0] for command in commands] == ["eval", "inspect", "train"]
        capsys.readouterr()
        for command in commands:
            assert main(shlex.split(command)) == 0
        out = capsys.readouterr().out
        assert f"checkpoints/step-{reached:08}.h5\n" in out


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [
        (0.04, "0.0 s", "0:01"),
        (59.94, "59.9 s", "1:00"),
        (59.96, "1 min 00 s", "1:00"),
        (125, "2 min 05 s", "2:05"),
        (3599.6, "1 h 00 min", "1:00:00"),
        (12_000, "3 h 20 min", "3:20:00"),
    ],
)
def test_seconds_are_shown_in_words_and_as_a_clock(seconds: float, words: str, digits: str) -> None:
    assert (duration(seconds), clock(seconds)) == (words, digits)


def test_the_time_left_is_that_of_the_steps_and_evaluations_that_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 2 epochs of 7 steps of 0.5 s, the first of 3 s, and evaluations of 2 s."""
    now = 100.0
    monkeypatch.setattr("dptrain.report.pace.time.perf_counter", lambda: now)
    pace = Pace(FACTS, 0)
    assert (pace.left(), pace.rate()) == (None, None)
    now += 3
    pace.step_finished(1)
    assert pace.left() is None  # the first step is no measure
    for step in range(2, 8):
        now += 0.5
        pace.step_finished(step)
    assert pace.left() == pytest.approx(7 * 0.5)
    assert pace.epoch_left() == 0
    now += 2
    pace.evaluation_finished(2.0)
    now += 0.5
    pace.step_finished(8)
    assert pace.left() == pytest.approx(6 * 0.5 + 2)
    assert pace.epoch_left() == pytest.approx(6 * 0.5)
    assert pace.rate() == pytest.approx((1010 + 160) / (3 + 7 * 0.5))  # the last step of an epoch has 50 images


def test_a_resumed_run_measures_only_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("dptrain.report.pace.time.perf_counter", lambda: now)
    pace = Pace(FACTS, 5)
    for step in (6, 7, 8):
        now += 1
        pace.step_finished(step)
    assert (pace.steps, pace.left()) == (3, 6)
    assert pace.rate() == pytest.approx((160 + 50 + 160) / 3)
