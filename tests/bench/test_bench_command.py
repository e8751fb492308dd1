"""`dptrain bench` as users type it; the figures are tested in test_bench_step.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_runs import Done, assert_one_error, dptrain_here
from mpi_runs import dptrain, own_mpi

from dptrain.bench.scaling import powers_of_two


def bench(*words: str, ranks: int, cwd: Path) -> Done:
    """A benchmark, within this process on one rank."""
    if ranks == 1:
        return dptrain_here("bench", *words, cwd=cwd)
    return dptrain("bench", *words, cwd=cwd, mpi=own_mpi(), ranks=ranks)


SMALL = ("--image", "1", "8", "8", "--classes", "3", "--batch-size", "16")


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 2])
def test_step_has_its_figures_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    words = ("step", *SMALL, "--steps", "3", "--threads", "1")
    figures = json.loads(bench(*words, "--json", ranks=ranks, cwd=tmp_path).stdout)
    assert figures["images_per_second"] > 0
    assert (figures["ranks"], figures["threads"], figures["batch_size"]) == (ranks, 1, 16)
    assert len(figures["seconds"]) == len(figures["peak_memory_mib"]) == ranks
    assert figures["slowest_rank"] in range(ranks)
    table = bench(*words, ranks=ranks, cwd=tmp_path).stdout
    assert "share of sgemm" in table
    assert "peak memory mib" in table
    assert "  im2col  " in table


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 3])
def test_reduce_measures_both_reductions_over_lengths(ranks: int, tmp_path: Path) -> None:
    words = ("reduce", "--lengths", "10", "5000", "--runs", "3")
    rows = json.loads(bench(*words, "--json", ranks=ranks, cwd=tmp_path).stdout)
    assert [(row["reduction"], row["length"]) for row in rows] == [
        ("tree", 10), ("mpi", 10), ("tree", 5000), ("mpi", 5000),
    ]  # fmt: skip
    assert all(row["exchange_us"] > 0 and row["local_sums_us"] > 0 and row["ranks"] == ranks for row in rows)
    assert "local sums us" in bench(*words, ranks=ranks, cwd=tmp_path).stdout


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("ranks", [1, 2])
def test_data_measures_packing_reading_and_batches(ranks: int, tmp_path: Path) -> None:
    words = ("data", *SMALL, "--samples", "300")
    rates = json.loads(bench(*words, "--json", ranks=ranks, cwd=tmp_path).stdout)
    assert set(rates["batches"]) == {"none", "reflect", "zero"}
    assert min(rates["packing"], rates["reading"], *rates["batches"].values()) > 0
    assert "batches: none " in bench(*words, ranks=ranks, cwd=tmp_path).stdout


@pytest.mark.mpi
@pytest.mark.once
def test_scaling_runs_every_setting_of_the_machine(tmp_path: Path) -> None:
    words = ("bench", "scaling", *SMALL, "--batch-size-per-core", "8", "--cores", "2", "--runs", "1", "--steps", "2")
    rows = json.loads(dptrain(*words, "--json", "--model-options", "widths = [2]", cwd=tmp_path).stdout)
    assert [(row["scaling"], row["ranks"], row["threads"], row["batch_size"]) for row in rows] == [
        ("strong", 1, 1, 16), ("strong", 2, 1, 16), ("strong", 1, 2, 16),
        ("weak", 1, 1, 8), ("weak", 2, 1, 16), ("weak", 1, 2, 16),
    ]  # fmt: skip
    assert rows[0]["efficiency"] == rows[3]["efficiency"] == 1
    for row in rows:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["slowest_ranks"][0] in range(row["ranks"])


def test_a_setting_that_fails_says_why(tmp_path: Path) -> None:
    done = dptrain("bench", "scaling", "--shards", "3", "--batch-size", "64", "--cores", "1", cwd=tmp_path)
    assert_one_error(done, "1 x 1 cores", "--batch-size 64 is not a multiple of --shards 3")


@pytest.mark.mpi
@pytest.mark.once
def test_scaling_is_not_started_by_mpirun(tmp_path: Path) -> None:
    done = dptrain("bench", "scaling", cwd=tmp_path, mpi=own_mpi(), ranks=2)
    assert_one_error(done, "start it without mpirun", status=2, ranks=True)


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize("what", [("step", "--batch-size", "4"), ("reduce",), ("data", "--batch-size", "4")], ids=str)
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
def test_what_cannot_be_measured_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert_one_error(dptrain_here("bench", *words, cwd=tmp_path), message, status=2)


@pytest.mark.parametrize(("most", "powers"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_cores_double_up_to_all(most: int, powers: list[int]) -> None:
    assert powers_of_two(most) == powers
