"""dptrain.report.jsonl: metrics.jsonl of real runs, line by line."""

from __future__ import annotations

import json
import resource
import socket
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import (
    BATCH_SIZE,
    LAST_STEP,
    STEPS_PER_EPOCH,
    TRAIN,
    configuration,
    packed,
)

from dptrain import __version__
from dptrain.errors import DptrainError, PreemptedError
from dptrain.health.interruption import NEVER, Interruption
from dptrain.parallel.communicator import Communicator
from dptrain.report.jsonl import JsonLines
from dptrain.training.events import Event, RanksLost, RunFacts, RunStarted, StepFinished
from dptrain.training.loop import train

SECONDS = {"compute", "data", "waiting", "reduction"}
KEYS = {
    "start": {"event", "step", "ranks", "threads", "resumed_from", "time", "host", "command", "versions"},
    "step": {"event", "step", "epoch", "loss", "accuracy", "lr", "images_per_second", "seconds"},
    "epoch": {
        "validation_loss",
        "validation_accuracy",
        "event",
        "step",
        "epoch",
        "loss",
        "accuracy",
        "test_loss",
        "test_accuracy",
        "lr",
        "images_per_second",
        "seconds",
        "rank_seconds",
        "evaluation_seconds",
        "params_sha256",
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("metrics") / "set")


def recorded(
    data: Path, folder: Path, interruption: Interruption = NEVER, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every line of metrics.jsonl after a run, and the values of the last event."""
    config = configuration(data, folder, **changes)
    with closing(JsonLines()) as reporter:
        finished = train(config, Communicator(), [reporter], interruption)
    assert finished is not None
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], finished._asdict()


def of(event: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def test_every_line_is_json_with_the_documented_keys(data: Path, tmp_path: Path) -> None:
    lines, _ = recorded(data, tmp_path / "run")
    assert [line["event"] for line in lines] == ["start", *(["step"] * STEPS_PER_EPOCH + ["epoch"]) * 2]
    for line in lines:
        assert set(line) == KEYS[line["event"]]
        assert set(line.get("seconds", SECONDS)) == SECONDS
    expected = {"event": "start", "step": 0, "ranks": 1, "threads": 1, "resumed_from": None}
    assert expected.items() <= lines[0].items()


def test_steps_and_epochs_are_counted_from_one(data: Path, tmp_path: Path) -> None:
    lines, _ = recorded(data, tmp_path / "run")
    expected = [(step, (step - 1) // STEPS_PER_EPOCH + 1) for step in range(1, LAST_STEP + 1)]
    assert [(line["step"], line["epoch"]) for line in of("step", lines)] == expected
    assert [(line["step"], line["epoch"]) for line in of("epoch", lines)] == [(7, 1), (14, 2)]


def test_an_epochs_figures_are_the_means_of_its_steps(data: Path, tmp_path: Path) -> None:
    lines, summary = recorded(data, tmp_path / "run")
    sizes = [BATCH_SIZE] * (STEPS_PER_EPOCH - 1) + [TRAIN % BATCH_SIZE]
    for number, epoch in enumerate(of("epoch", lines)):
        steps = of("step", lines)[number * STEPS_PER_EPOCH : (number + 1) * STEPS_PER_EPOCH]
        for name in ("loss", "accuracy"):
            mean = sum(line[name] * size for line, size in zip(steps, sizes, strict=True)) / TRAIN
            assert epoch[name] == pytest.approx(mean)
        assert epoch["rank_seconds"] == [epoch["seconds"]]
        for name in SECONDS:
            assert epoch["seconds"][name] == pytest.approx(sum(line["seconds"][name] for line in steps), abs=1e-3)
        assert epoch["lr"] == steps[-1]["lr"]
    for name in ("test_loss", "test_accuracy", "params_sha256"):
        assert of("epoch", lines)[-1][name] == summary[name]


@pytest.mark.parametrize(("log_every", "logged"), [(3, [3, 6, 9, 12]), (14, [14]), (50, [])])
def test_steps_are_logged_at_the_interval(log_every: int, logged: list[int], data: Path, tmp_path: Path) -> None:
    lines, _ = recorded(data, tmp_path / "run", log_every=log_every)
    assert [line["step"] for line in of("step", lines)] == logged
    assert len(of("epoch", lines)) == 2


def test_a_resumed_run_appends_the_same_figures_as_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    whole, _ = recorded(data, tmp_path / "whole")
    first, _ = recorded(data, tmp_path / "run", max_steps=4)
    lines, _ = recorded(data, tmp_path / "run", threads=2)
    assert lines[: len(first)] == first
    resumed_from = str(tmp_path / "run/checkpoints/step-00000004.h5")
    expected = {"event": "start", "step": 4, "ranks": 1, "threads": 2, "resumed_from": resumed_from}
    assert expected.items() <= lines[len(first)].items()
    timed = {"images_per_second", "seconds", "rank_seconds", "evaluation_seconds"}
    figures = [
        [{key: value for key, value in line.items() if key not in timed} for line in part]
        for part in (of("step", lines), of("step", whole), of("epoch", lines)[1:], of("epoch", whole))
    ]
    assert figures[0] == figures[1]
    assert figures[2] == figures[3]


class AsksToEnd(JsonLines, Interruption):
    """Asks the run to end after a step."""

    def handle(self, event: Event) -> None:
        super().handle(event)
        if isinstance(event, StepFinished) and event.step == STEPS_PER_EPOCH:
            self.signal_name = "SIGTERM"


def test_a_run_resumed_at_the_end_of_an_epoch_has_no_rate_for_it(data: Path, tmp_path: Path) -> None:
    """Found in the field: "images_per_second": 0.0 in the epoch line, as this process made no step of the epoch."""
    with closing(AsksToEnd()) as reporter, pytest.raises(PreemptedError):
        train(configuration(data, tmp_path / "run"), Communicator(), [reporter], reporter)
    lines, _ = recorded(data, tmp_path / "run")
    first, second = of("epoch", lines)
    assert (first["step"], first["images_per_second"]) == (STEPS_PER_EPOCH, None)
    assert second["images_per_second"] > 0


def test_an_evaluation_that_is_repeated_is_not_logged_again(data: Path, tmp_path: Path) -> None:
    before, _ = recorded(data, tmp_path / "run")
    lines, _ = recorded(data, tmp_path / "run")
    assert [line["event"] for line in lines[len(before) :]] == ["start"]


def test_the_first_line_says_when_where_and_with_what(data: Path, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    line = recorded(data, tmp_path / "run", max_steps=1)[0][0]
    started = datetime.fromisoformat(line["time"])
    assert started.utcoffset() == timedelta(0)
    assert abs(started - before) < timedelta(seconds=30)
    assert (line["host"], line["command"]) == (socket.gethostname(), sys.argv)
    assert (line["versions"]["dptrain"], line["versions"]["numpy"]) == (__version__, np.__version__)
    assert set(line["versions"]) == {"dptrain", "python", "numpy", "mpi4py", "mpi"}


def facts(folder: Path) -> RunFacts:
    return RunFacts(str(folder), "", 0, 0, (1, 1, 1), 1, 1, "", 1, epochs=1, steps_per_epoch=1, last_step=1, ranks=2,
                    threads=1, connection="", mpi="")  # fmt: skip


def started_in(folder: Path) -> JsonLines:
    """A reporter of a run that has begun in a folder."""
    reporter = JsonLines()
    reporter.handle(RunStarted(facts(folder), 0, None))
    return reporter


STEP = StepFinished(1, 1, 0.5, 1.0, 0.1, 100.0, {}, logged=True)


def test_lost_ranks_are_a_line_with_the_documented_keys(tmp_path: Path) -> None:
    """It is the first line that a new rank 0 writes, as on a host with another disk."""
    reporter = started_in(tmp_path)
    (tmp_path / "other").mkdir()
    reporter.handle(RanksLost(facts(tmp_path / "other"), 5, [0, 2], 0.25))
    reporter.handle(STEP)
    reporter.close()
    lines = [json.loads(line) for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    expected = {"step": 5, "lost": [0, 2], "ranks": 2, "threads": 1, "recovery_seconds": 0.25}
    assert lines[0] == {"event": "recovery", **expected}
    assert [line["event"] for line in lines] == ["recovery", "step"]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    reporter = started_in(tmp_path)
    reporter.handle(STEP)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    reporter.close()
    assert set(line) == KEYS[line["event"]] == KEYS["step"]


def test_a_file_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DptrainError, match=r"metrics\.jsonl: cannot be written: No such file"):
        started_in(tmp_path / "missing")


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "start"}\n{"event": "st')
    started_in(tmp_path).close()
    assert path.read_text().splitlines()[:2] == ['{"event": "start"}', '{"event": "st']
    assert json.loads(path.read_text().splitlines()[2])["event"] == "start"


def test_a_full_disk_is_reported_by_one_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        file.truncate(1 << 30)  # writing to this file always fails
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, before[1]))
    try:
        with pytest.raises(DptrainError, match="File too large; checkpoints so far are kept"):
            started_in(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DptrainError, match="Too many levels of symbolic links"):
        started_in(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
