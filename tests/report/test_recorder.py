"""dptrain.report.recorder: rank 0 tells how fast the run goes and where the time went, the others nothing."""

from __future__ import annotations

import json
import re
import socket
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import LAST_STEP, configuration, packed, session_and_state

from dptrain import __version__
from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import read_checkpoint
from dptrain.checkpoint.state import TrainingState
from dptrain.parallel.communicator import Communicator
from dptrain.report import recorder as recorder_module
from dptrain.report.recorder import Recorder, Span
from dptrain.training.loop import train
from dptrain.training.setup import Session
from dptrain.training.step import Seconds, StepOutcome


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recorder_module, "time", clock)
    return clock


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return packed(tmp_path / "set")


class OtherRank(Communicator):
    """Rank 1, as far as the recorder can see."""

    rank = 1
    size = 2


class AsAnotherRank(Recorder):
    """A recorder that takes the process it is told of for rank 1, until it is to be rank 0."""

    communicator: Communicator = OtherRank()

    def started(self, session: Session, *rest: Any) -> None:
        super().started(replace(session, communicator=self.communicator), *rest)


def trained(data: Path, folder: Path, kind: type[Recorder] = Recorder, **changes: object) -> None:
    config = configuration(data, folder, **changes)
    with closing(kind(config, "one process")) as recorder:
        train(config, Communicator(), recorder)


def test_images_a_second_are_samples_over_wall_time_without_evaluation(clock: Clock) -> None:
    span = Span()
    for _ in range(4):
        span.add(StepOutcome(1.0, 3, 50, Seconds(1, 2, 3, 4)))
    clock.now += 5
    assert span.figures() == {
        "images_per_second": 200 / 5,
        "seconds": {"compute": 4, "data": 8, "waiting": 12, "reduction": 16},
    }
    assert span.figures(3)["images_per_second"] == 200 / 2


def test_rank_0_prints_and_writes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(data, tmp_path / "run", log_every=5)
    out = capsys.readouterr().out
    assert "101 training and 37 test images 2x6x7, 5 classes, 4 shards" in out
    assert "7 steps an epoch, 14 in all" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("step ")] == ["5", "10"]
    last = tmp_path / "run" / "checkpoints" / f"step-{LAST_STEP:08d}.h5"
    assert f"last checkpoint {last}" in out
    assert last.exists()
    best = re.search(r"best checkpoint (\S+) \(test accuracy ([\d.]+) %, step (\d+)\)", out)
    assert best is not None
    state = read_checkpoint(Path(best[1])).state
    assert (Path(best[1]).name, state.step) == ("best.h5", int(best[3]))
    assert 100 * (state.progress.test_accuracy or 0) == pytest.approx(float(best[2]), abs=0.005)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0


def test_the_first_line_of_the_metrics_says_when_where_and_with_what(data: Path, tmp_path: Path) -> None:
    before = datetime.now(UTC)
    trained(data, tmp_path / "run")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["event"] == "start"
    started = datetime.fromisoformat(line["time"])
    assert started.utcoffset() == timedelta(0)
    assert abs(started - before) < timedelta(seconds=30)
    assert line["host"] == socket.gethostname()
    assert line["command"] == sys.argv
    assert line["versions"]["dptrain"] == __version__
    assert line["versions"]["numpy"] == np.__version__
    assert {"python", "h5py", "hdf5", "mpi4py", "mpi"} <= set(line["versions"])


def test_other_ranks_neither_print_nor_write(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trained(data, tmp_path / "run", AsAnotherRank)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_a_rank_that_becomes_rank_0_reports_from_then_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Survivor(AsAnotherRank):
        def stepped(self, state: TrainingState, outcome: StepOutcome, lr: float) -> None:
            if state.step == 5:
                session, _ = session_and_state(self.config)
                self.recovered(session, state, RunFolder(tmp_path / "run"), [0, 2], 0.25)
            super().stepped(state, outcome, lr)

    trained(data, tmp_path / "run", Survivor, log_every=1)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "ranks 0, 2 died: 1 rank of 1 thread continue from step 5 after 0.25 s"
    assert out[1].startswith("step 5 ")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "event": "recovery",
        "step": 5,
        "lost": [0, 2],
        "ranks": 1,
        "threads": 1,
        "recovery_seconds": 0.25,
    }
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(5, LAST_STEP + 1))


def test_a_resumed_run_says_from_where(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(data, tmp_path / "run", max_steps=3)
    capsys.readouterr()
    trained(data, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003.h5"
    assert f"run    {tmp_path / 'run'}, from {checkpoint} (step 3)" in capsys.readouterr().out


def test_accuracies_are_percentages_with_two_digits(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(data, tmp_path / "run")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test accuracy "))
    percent, right = float(line.split()[2]), int(line.split("(")[1].split()[0])
    assert line == f"test accuracy {percent:.2f} % ({right} of 37)"
    assert percent == pytest.approx(100 * right / 37, abs=0.005)


def test_closing_twice_does_no_harm(data: Path, tmp_path: Path) -> None:
    recorder = Recorder(configuration(data, tmp_path / "run"), "one process")
    recorder.close()
    recorder.close()
