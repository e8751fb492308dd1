"""dptrain.training.timeline: the files of real runs, checked against the Trace Event Format and against the run."""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mpi_runs import dptrain, own_mpi
from selection import quick_first
from training_runs import configuration, flags, packed, run

from dptrain.health.recorder import NO_RECORDER, Span
from dptrain.parallel.clocks import Offset
from dptrain.parallel.communicator import Communicator
from dptrain.training.timeline import WARM_UP
from dptrain.training.trace_events import RankSpans, trace_json

FIRST, LAST = WARM_UP + 1, WARM_UP + 4  # with --timeline 4; an epoch ends after step 7
MODEL = """from dptrain.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Residual


def build(input_shape, classes):
    return [Conv2d(4, 3, padding=1), ReLU(), MaxPool2d(2), Residual([Conv2d(4, 3, padding=1), BatchNorm2d(), ReLU()]),
            Dropout(0.1), Flatten(), Linear(classes)]
"""
LAYERS = {"conv1 + relu1 + pool1", "conv2", "norm1 + relu2", "add1", "dropout1", "flatten1", "linear1"}


@dataclass
class Trace:
    """A timeline, its complete events in the order of the file."""

    content: dict[str, Any]

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [event for event in self.content["traceEvents"] if event["ph"] == "X"]

    def names(self, kind: str) -> dict[tuple[int, int], str]:
        """The names that metadata events give processes or threads, by pid and tid."""
        events = [event for event in self.content["traceEvents"] if event["ph"] == "M" and event["name"] == kind]
        return {(event["pid"], event["tid"]): event["args"]["name"] for event in events}

    def of(self, category: str, pid: int | None = None) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["cat"] == category and pid in (None, span["pid"])]


def inside(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return bool(inner["ts"] >= outer["ts"] and end(inner) <= end(outer))


def end(span: dict[str, Any]) -> float:
    return float(round(span["ts"] + span["dur"], 3))


def assert_valid(trace: Trace) -> None:
    """The rules of the Trace Event Format for the two kinds of events in the file."""
    assert set(trace.content) == {"traceEvents", "displayTimeUnit", "otherData"}
    for event in trace.content["traceEvents"]:
        assert type(event["pid"]) is type(event["tid"]) is int
        if event["ph"] == "M":
            assert set(event) == {"name", "ph", "pid", "tid", "args"}
        else:
            assert set(event) == {"name", "cat", "ph", "ts", "dur", "pid", "tid"}
            assert event["ph"] == "X"
            assert event["ts"] >= 0 <= event["dur"]
    tracks = defaultdict(list)
    for span in trace.spans:
        tracks[span["pid"], span["tid"]].append(span)
    assert set(trace.names("thread_name")) == set(tracks)
    assert {pid for pid, _ in trace.names("process_name")} == {pid for pid, _ in tracks}
    for spans in tracks.values():
        around: list[dict[str, Any]] = []
        for span in spans:  # nested or apart, never overlapping in part
            while around and end(around[-1]) <= span["ts"]:
                around.pop()
            assert not around or inside(span, around[-1]), (span, around[-1])
            around.append(span)


def assert_spans_of_steps(trace: Trace, pid: int, layers: set[str], shards: int) -> None:
    """Every step has its parts and all layers of all shards of a rank, within the time of the step."""
    steps = trace.of("step", pid)
    assert [step["name"] for step in steps] == [f"step {number}" for number in range(FIRST, LAST + 1)]
    for step in steps:
        parts = [span for span in trace.spans if span["pid"] == pid and inside(span, step)]
        names = [part["name"] for part in parts]
        for name in ("compute", "reduction", "update"):
            assert names.count(name) == 1, name
        assert names.count("batch") == shards
        assert {name for name in names if name.startswith("shard ")} != set()
        for way in ("forward", "backward"):
            assert {part["name"] for part in parts if part["cat"] == way} == {f"{layer} {way}" for layer in layers}
    every = [span for category in ("compute", "reduction", "update") for span in trace.of(category, pid)]
    assert all(any(inside(span, step) for step in steps) for span in every)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("timeline") / "set")


@pytest.mark.slow
@quick_first("threads", [1, 2])
def test_a_run_of_one_process_records_its_layers_and_workers(data: Path, tmp_path: Path, threads: int) -> None:
    model = tmp_path / "net.py"
    model.write_text(MODEL)
    changes = {"model": f"{model}:build", "model_options": {}, "threads": threads, "checkpoint_every": "8"}
    plain, _ = run(configuration(data, tmp_path / "plain", **changes))
    found, memory = run(configuration(data, tmp_path / "run", timeline=4, **changes))
    assert found["params_sha256"] == plain["params_sha256"]
    assert not (tmp_path / "plain" / "timeline.json").exists()
    path = tmp_path / "run" / "timeline.json"
    assert f"timeline of steps {FIRST} to {LAST}: {path}, open it in https://ui.perfetto.dev" in memory.lines
    trace = Trace(json.loads(path.read_text()))
    assert_valid(trace)
    assert_spans_of_steps(trace, 0, LAYERS, shards=4)
    workers = {tid: name for (_, tid), name in trace.names("thread_name").items() if name != "checkpoint"}
    assert workers == dict(enumerate(["main", "worker 1"][:threads]))
    shards = {(span["tid"], span["name"]) for span in trace.of("shard")}
    assert shards == {(shard * threads // 4, f"shard {shard}") for shard in range(4)}
    (evaluation,) = trace.of("evaluation")
    assert evaluation["name"] == "evaluation after step 7"
    assert not any(inside(evaluation, step) for step in trace.of("step"))
    assert {span["name"] for span in trace.of("checkpoint")} >= {"checkpoint", "write checkpoint of step 7"}
    assert trace.content["otherData"]["first_step"] == FIRST
    assert trace.content["otherData"]["last_step"] == LAST


@pytest.mark.mpi
@pytest.mark.slow
def test_the_steps_of_three_ranks_overlap_in_aligned_time(data: Path, tmp_path: Path) -> None:
    done = dptrain("train", *flags(data, tmp_path / "run", timeline=4), cwd=tmp_path, mpi=own_mpi(), ranks=3)
    assert done.returncode == 0, done.stderr
    plain, _ = run(configuration(data, tmp_path / "plain"))
    assert plain["params_sha256"] in done.stdout
    trace = Trace(json.loads((tmp_path / "run" / "timeline.json").read_text()))
    assert_valid(trace)
    host = socket.gethostname()
    assert [name.split(",")[0] for name in trace.names("process_name").values()] == [
        f"rank {rank} ({host}" for rank in range(3)
    ]
    shards = [1, 1, 2]
    for rank in range(3):
        assert_spans_of_steps(trace, rank, {"conv1 + relu1 + pool1", "flatten1", "linear1"}, shards[rank])
        waits = trace.of("waiting", rank)
        assert all(any(inside(wait, one) for wait in waits) for one in trace.of("reduction", rank))
    for number in range(FIRST, LAST + 1):
        # No rank ends the reduction of a step before all have begun the step.
        begins = [span["ts"] for span in trace.of("step") if span["name"] == f"step {number}"]
        ends = [end(span) for span in trace.of("step") if span["name"] == f"step {number}"]
        assert len(begins) == 3
        assert max(begins) < min(ends)
    for accuracy in trace.content["otherData"]["clock_accuracy_microseconds"].values():
        assert 0 <= accuracy < 50_000


def test_a_run_that_ends_early_writes_what_it_has_recorded(data: Path, tmp_path: Path) -> None:
    _, memory = run(configuration(data, tmp_path / "run", timeline=1000))
    assert any(line.startswith(f"timeline of steps {FIRST} to 14: ") for line in memory.lines)
    trace = Trace(json.loads((tmp_path / "run" / "timeline.json").read_text()))
    assert_valid(trace)
    assert len(trace.of("step")) == 14 - WARM_UP


def test_a_run_without_a_recorded_step_reports_it(data: Path, tmp_path: Path) -> None:
    _, memory = run(configuration(data, tmp_path / "run", timeline=4, max_steps=WARM_UP))
    assert f"no timeline: recording begins after {WARM_UP} steps, and this process made {WARM_UP}" in memory.lines
    assert not (tmp_path / "run" / "timeline.json").exists()


def test_a_timeline_that_cannot_be_written_does_not_end_the_run(data: Path, tmp_path: Path) -> None:
    run(configuration(data, tmp_path / "run", max_steps=1))
    (tmp_path / "run" / "timeline.json").mkdir()
    found, memory = run(configuration(data, tmp_path / "run", timeline=4))
    assert found["step"] == 14
    assert len([line for line in memory.lines if "timeline.json: cannot be written" in line]) == 1


def test_times_are_those_of_the_first_rank_in_microseconds() -> None:
    ranks = [
        RankSpans(0, "a", 7, [Span("main", "step 6", "step", 10.0, 10.5), Span("shard_0", "x", "shard", 10.1, 10.2)]),
        RankSpans(2, "b", 8, [Span("main", "step 6", "step", 1000.25, 1000.75)]),
    ]
    trace = Trace(json.loads(trace_json(ranks, [Offset(0.0, 0.0), Offset(990.5, 1e-4)], {})))
    assert_valid(trace)
    found = [(span["pid"], span["tid"], span["ts"], span["dur"]) for span in trace.spans]
    assert found == [(0, 0, 250_000.0, 500_000.0), (0, 1, 350_000.0, 100_000.0), (2, 0, 0.0, 500_000.0)]
    assert trace.names("thread_name") == {(0, 0): "main", (0, 1): "worker 1", (2, 0): "main"}


def test_without_timeline_nothing_is_recorded() -> None:
    assert Communicator().recorder is NO_RECORDER
    with NO_RECORDER.span("step 1", "step"):
        pass
    assert NO_RECORDER.take() == []
