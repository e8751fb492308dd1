"""dptrain.report: which reporters receive which events, and how to add a reporter."""

from __future__ import annotations

import csv
import json
import pickle
import time
from pathlib import Path
from typing import Any, TextIO

import pytest
from thread_ranks import on_ranks
from training_runs import LAST_STEP, STEPS_PER_EPOCH, configuration, flags, packed

from dptrain import report
from dptrain.commands.main import main
from dptrain.errors import DptrainError
from dptrain.parallel.communicator import Communicator
from dptrain.training import reporting
from dptrain.training.events import CheckpointSaved, EvaluationFinished, Event, RunStarted, StepFinished
from dptrain.training.loop import train
from dptrain.training.reporting import Meter
from dptrain.training.step import Seconds, StepOutcome


class CsvFile:
    """A complete third reporter: writes one row per epoch to epochs.csv in the run folder."""

    def __init__(self) -> None:
        self.file: TextIO | None = None

    def handle(self, event: Event) -> None:
        match event:
            case RunStarted(run):
                self.file = Path(run.run_dir, "epochs.csv").open("a", newline="")  # noqa: SIM115 - closed by `close`
            case EvaluationFinished():
                assert self.file is not None
                csv.writer(self.file).writerow([event.epoch, event.loss, event.test_accuracy])

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return packed(tmp_path / "set")


def test_a_third_reporter_needs_one_class_and_one_line_in_the_list(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "REPORTERS", (*report.REPORTERS, CsvFile))
    assert main(["train", *flags(data, tmp_path / "run")]) == 0
    rows = list(csv.reader((tmp_path / "run" / "epochs.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert rows == [[str(line[key]) for key in ("epoch", "loss", "test_accuracy")] for line in epochs]
    assert len(rows) == 2
    assert "epoch 2/2  step 14" in capsys.readouterr().out


class Keeping:
    """A reporter that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


def test_only_the_reporters_of_rank_0_receive_events(data: Path, tmp_path: Path) -> None:
    reporters = [Keeping(), Keeping()]

    def program(communicator: Communicator) -> Any:
        config = configuration(data, tmp_path / "run", stall_limit=0.0)  # ranks are threads here
        return train(config, communicator, [reporters[communicator.rank]])

    on_ranks(2, program)
    kinds = [type(event).__name__ for event in reporters[0].events if not isinstance(event, CheckpointSaved)]
    epoch = ["StepFinished"] * STEPS_PER_EPOCH + ["EvaluationStarted", "EvaluationFinished", "CheckpointStarted"]
    assert kinds == ["RunStarted", *epoch, *epoch, "RunFinished"]
    assert reporters[1].events == []


def test_a_checkpoint_is_reported_once_when_it_is_on_the_disk(data: Path, tmp_path: Path) -> None:
    class Looking(Keeping):
        def handle(self, event: Event) -> None:
            if isinstance(event, CheckpointSaved):
                assert (tmp_path / f"run/checkpoints/step-{event.step:08}.h5").is_file()
                super().handle(event)
            elif isinstance(event, StepFinished):
                time.sleep(0.02)  # for the thread that writes

    reporter = Looking()
    train(configuration(data, tmp_path / "run", checkpoint_every="2"), Communicator(), [reporter])
    steps = [event.step for event in reporter.events if isinstance(event, CheckpointSaved)]
    assert steps == sorted(set(steps))
    assert set(steps) <= {2, 4, 6, 7, 8, 10, 12}
    assert len(steps) > 3


def test_events_hold_only_plain_values(data: Path, tmp_path: Path) -> None:
    """No array, path, network or state: a reporter cannot change a run, and may keep or send what it receives."""
    plain = (str, int, float, bool, type(None))
    reporter = Keeping()
    train(configuration(data, tmp_path / "run"), Communicator(), [reporter])
    for event in reporter.events:
        assert pickle.loads(pickle.dumps(event)) == event
        stack: list[Any] = [event]
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                stack += value.values()
            elif isinstance(value, list | tuple):
                stack += value
            else:
                assert type(value) in plain


def test_an_error_of_a_reporter_ends_the_run(data: Path, tmp_path: Path) -> None:
    class Full(Keeping):
        def handle(self, event: Event) -> None:
            super().handle(event)
            if len(self.events) == 3:
                raise DptrainError("the disk is full")

    reporter = Full()
    with pytest.raises(DptrainError, match="the disk is full"):
        train(configuration(data, tmp_path / "run"), Communicator(), [reporter])
    assert len(reporter.events) == 3 < LAST_STEP


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_images_per_second_are_samples_over_wall_time_without_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    meter = Meter()
    for _ in range(4):
        meter.add(StepOutcome(1.0, 3, 50, Seconds(1, 2, 3, 4)))
    clock.now += 5
    seconds = {"compute": 4, "data": 8, "waiting": 12, "reduction": 16}
    assert meter.figures() == {"images_per_second": 200 / 5, "seconds": seconds}
    assert meter.figures(3)["images_per_second"] == 200 / 2
