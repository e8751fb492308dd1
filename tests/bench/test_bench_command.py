"""`dptrain bench` as users type it; the figures are tested in test_bench_step.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import assert_one_error, dptrain_here
from mpi_runs import dptrain, own_mpi
from selection import quick_first
from thread_ranks import on_ranks

from dptrain.bench import scaling, step
from dptrain.bench.scaling import Setting, powers_of_two, settings
from dptrain.bench.unconnected import limit_by_the_slowest, measure_unconnected
from dptrain.commands.parser import build_parser
from dptrain.config.train import TrainConfig
from dptrain.errors import DptrainError
from dptrain.parallel.communicator import Communicator

SMALL = ("--image", "1", "8", "8", "--classes", "3", "--batch-size", "16")


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the measurement of the sgemm rate short."""
    monkeypatch.setattr(step, "MATRIX", 256)


def figures(ranks: int, folder: Path, *words: str) -> Any:
    """The JSON of a benchmark that runs under mpirun or in this process."""
    words = ("bench", *words, "--json")
    done = dptrain_here(*words, cwd=folder) if ranks == 1 else dptrain(*words, cwd=folder, mpi=own_mpi(), ranks=ranks)
    return json.loads(done.stdout)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 2])
def test_bench_step_reports_its_figures_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    found = figures(ranks, tmp_path, "step", *SMALL, "--steps", "3", "--threads", "1")
    assert found["images_per_second"] > 0
    assert (found["ranks"], found["threads"], found["batch_size"]) == (ranks, 1, 16)
    assert len(found["seconds"]) == len(found["peak_memory_mib"]) == ranks
    assert found["slowest_rank"] in range(ranks)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 3])
def test_bench_reduce_measures_both_reductions_for_several_lengths(ranks: int, tmp_path: Path) -> None:
    rows = figures(ranks, tmp_path, "reduce", "--lengths", "10", "5000", "--runs", "3")
    assert [(row["reduction"], row["length"]) for row in rows] == [
        ("tree", 10), ("mpi", 10), ("tree", 5000), ("mpi", 5000),
    ]  # fmt: skip
    assert all(row["exchange_us"] > 0 and row["local_sums_us"] > 0 and row["ranks"] == ranks for row in rows)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 2])
def test_bench_data_measures_packing_reading_and_batches(ranks: int, tmp_path: Path) -> None:
    rates = figures(ranks, tmp_path, "data", *SMALL, "--samples", "300")
    assert set(rates["batches"]) == {"none", "reflect", "zero"}
    assert min(rates["packing"], rates["reading"], *rates["batches"].values()) > 0


@quick_first(
    ("words", "cells"),
    [
        (("step", *SMALL, "--steps", "3", "--threads", "1"), ["share of sgemm", "peak memory mib", "  im2col  "]),
        (("reduce", "--lengths", "10", "--runs", "3"), ["medians on the slowest rank\n", "local sums us"]),
        (("data", *SMALL, "--samples", "300"), ["batches: none "]),
    ],
    ids=str,
)
def test_figures_are_printed_as_tables(words: tuple[str, ...], cells: list[str], tmp_path: Path) -> None:
    table = dptrain_here("bench", *words, cwd=tmp_path).stdout
    assert all(cell in table for cell in cells)


@pytest.mark.mpi
@pytest.mark.once
def test_bench_unconnected_compares_ranks_with_ranks_that_train_alone(tmp_path: Path) -> None:
    found = figures(2, tmp_path, "unconnected", *SMALL, "--steps", "2", "--runs", "3")
    assert (found["ranks"], found["batch_size"], found["steps"], found["runs"]) == (2, 16, 2, 3)
    assert min(found["connected_images_per_second"], found["unconnected_images_per_second"]) > 0
    assert found["middle_half"][0] <= found["ratio"] <= found["middle_half"][1]
    assert 0 < found["limit_by_the_slowest_rank"] <= 1


@pytest.mark.parametrize(
    ("durations", "limit"),
    [([[2, 2], [2, 2]], 1), ([[1, 3], [3, 1]], 2 / 3), ([[1, 1], [3, 3]], 1 / 2), ([[1], [2], [2]], 3 / 4)],
)
def test_a_step_together_takes_as_long_as_on_the_slowest_rank(durations: list[list[float]], limit: float) -> None:
    assert limit_by_the_slowest(durations) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("ranks", "shards", "message"),
    [(1, 8, "start it with mpirun -n 2"), (2, 9, "--shards 9 is not a multiple of the 2 ranks")],
)
def test_bench_unconnected_refuses_what_cannot_be_compared(ranks: int, shards: int, message: str) -> None:
    config = TrainConfig(threads=1)

    def measure(rank: Communicator) -> None:
        with pytest.raises(DptrainError, match=message):
            measure_unconnected(config, rank, (1, 8, 8), 3, shards=shards, steps=1, runs=1)

    on_ranks(ranks, measure)


def test_scaling_has_settings_of_ranks_and_of_threads() -> None:
    assert settings([1, 2], 16, 8) == [
        ("strong", 1, 1, 16), ("strong", 2, 1, 16), ("strong", 1, 2, 16),
        ("weak", 1, 1, 8), ("weak", 2, 1, 16), ("weak", 1, 2, 16),
    ]  # fmt: skip


def test_the_table_of_scaling_has_a_column_for_each_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"ranks": 2, "shares": {"compute": 0.75, "waiting": 0.25}, "slowest_ranks": [1, 0]}
    monkeypatch.setattr(scaling, "measure_scaling", lambda *_: [row])
    table = dptrain_here("bench", "scaling", cwd=tmp_path).stdout.splitlines()
    assert table[-3] == "medians of runs in turn; shares of the time"
    assert [line.split() for line in table[-2:]] == [
        ["ranks", "slowest", "ranks", "compute", "waiting"],
        ["2", "1", "0", "0.75", "0.25"],
    ]


def test_scaling_passes_model_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []

    def measured(settings: Any, words: list[str], *_: Any) -> list[dict[str, int]]:
        passed.extend(words)
        return [{"ranks": 1}]

    monkeypatch.setattr(scaling, "measure_scaling", measured)
    assert dptrain_here("bench", "scaling", "--model-options", 'a = {b = 1}, c = ["d"]', cwd=tmp_path).returncode == 0
    parsed = build_parser("bench").parse_args(["bench", "step", *passed])
    assert parsed.model_options == {"a": {"b": 1}, "c": ["d"]}


@pytest.mark.mpi
@pytest.mark.once
def test_scaling_runs_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [Setting("strong", 1, 1, 16), Setting("strong", 2, 1, 16)]
    monkeypatch.setattr(scaling, "settings", lambda cores, *batch_sizes: few if cores == [1, 2] else [])
    words = ("scaling", *SMALL, "--cores", "2", "--runs", "1", "--steps", "2", "--model-options", "widths = [2]")
    rows = figures(1, tmp_path, *words)
    assert [(row["scaling"], row["ranks"], row["threads"], row["batch_size"]) for row in rows] == few
    assert rows[0]["efficiency"] == 1
    for row in rows:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["slowest_ranks"][0] in range(row["ranks"])


@pytest.mark.slow
def test_a_setting_that_fails_is_reported_with_the_reason(tmp_path: Path) -> None:
    done = dptrain_here("bench", "scaling", "--shards", "3", "--batch-size", "64", "--cores", "1", cwd=tmp_path)
    assert_one_error(done, "1 x 1 cores", "--batch-size 64 is not a multiple of --shards 3")


@pytest.mark.mpi
@pytest.mark.once
def test_scaling_is_not_started_by_mpirun(tmp_path: Path) -> None:
    done = dptrain("bench", "scaling", cwd=tmp_path, mpi=own_mpi(), ranks=2)
    assert_one_error(done, "start it without mpirun", status=2, ranks=True)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("what", [("step", "--batch-size", "4"), ("data", "--batch-size", "4")], ids=str)
def test_more_ranks_than_shards_are_refused(what: tuple[str, ...], tmp_path: Path) -> None:
    done = dptrain("bench", *what, "--shards", "2", cwd=tmp_path, mpi=own_mpi(), ranks=3)
    assert_one_error(done, "3 ranks, but --shards 2", status=2, ranks=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: BENCHMARK"),
        (("stpe",), "unknown command 'stpe'; did you mean 'step'?"),
        (("step", "--steps", "0"), "expected a whole number of at least 1"),
        (("step", "--batch", "64"), "did you mean '--batch-size'"),
        (("step", "--batch-size", "12"), "--batch-size 12 is not a multiple of --shards 8"),
        (("step", "--model", "resnet"), "resnet"),
    ],
    ids=str,
)
def test_impossible_measurements_are_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert_one_error(dptrain_here("bench", *words, cwd=tmp_path), message, status=2)


@pytest.mark.parametrize(("most", "powers"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_cores_double_up_to_all(most: int, powers: list[int]) -> None:
    assert powers_of_two(most) == powers
