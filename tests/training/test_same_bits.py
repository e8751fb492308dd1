"""The promise of the project: one params_sha256 from any number of ranks, threads and stops.

On a fifth of CIFAR-10; where there is no archive, and this is no CI, on drawn shapes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import find_archive
from mpi_runs import dptrain

from data_prep.__main__ import main as data_prep

STEPS = 40

pytestmark = [pytest.mark.mpi, pytest.mark.once]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in 8 shards."""
    folder = tmp_path_factory.mktemp("data") / "set"
    archive = find_archive()
    source = ["shapes", str(folder)] if archive is None else ["cifar10", str(folder), "--archive", str(archive)]
    source += [] if archive is None else ["--limit", "10000"]
    assert data_prep(source) == 0
    return folder


def params_sha256(
    data: Path, run: Path, *flags: str, mpi: str | None = None, ranks: int = 1, steps: int = STEPS
) -> str:
    """Train up to a step and return the hash that the run ends with."""
    train = ("train", data, "--run-dir", run, "--max-steps", str(steps), "--json", *flags)
    done = dptrain(*train, cwd=run.parent, mpi=mpi, ranks=ranks)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["step"] == steps
    return summary["params_sha256"]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of one process with one thread and no MPI."""
    return params_sha256(data, tmp_path_factory.mktemp("runs") / "alone", "--threads", "1")


@pytest.mark.parametrize(
    ("mpi", "ranks", "threads"),
    [
        (None, 1, 2),
        ("openmpi", 2, 2),
        ("openmpi", 3, 1),
        ("openmpi", 8, 1),
        ("mpich", 2, 1),
    ],
)
def test_ranks_threads_and_mpi_do_not_change_a_bit(
    data: Path, undisturbed: str, tmp_path: Path, mpi: str | None, ranks: int, threads: int
) -> None:
    found = params_sha256(data, tmp_path / "run", "--threads", str(threads), mpi=mpi, ranks=ranks)
    assert found == undisturbed


def test_stopping_on_two_ranks_and_resuming_on_three_does_not_change_a_bit(
    data: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    halfway = params_sha256(data, run, mpi="openmpi", ranks=2, steps=17)
    assert halfway != undisturbed
    assert params_sha256(data, run, mpi="openmpi", ranks=3) == undisturbed
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["ranks"] for line in steps if line["event"] == "start"] == [2, 3]


def test_another_seed_changes_the_bits(data: Path, undisturbed: str, tmp_path: Path) -> None:
    assert params_sha256(data, tmp_path / "run", "--seed", "1", "--threads", "2") != undisturbed
