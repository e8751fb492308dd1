"""The main guarantee of the project: one params_sha256 from any number of ranks, threads and stops.

With real processes on 1,000 images of CIFAR-10 (on generated shapes, if there is no archive outside CI), and for
every optimizer and layer on ranks that are threads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import every_layer
import pytest
from data_sets import find_archive
from mpi_runs import dptrain
from thread_ranks import on_ranks
from training_runs import configuration, packed, run

from data_prep.__main__ import main as data_prep
from dptrain.config.train import TrainConfig
from dptrain.nn.zoo import ARCHITECTURES
from dptrain.optim import OPTIMIZERS
from dptrain.optim.average import AVERAGES
from dptrain.training.loop import train

STEPS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in 8 shards, of less than two epochs of STEPS."""
    folder = tmp_path_factory.mktemp("data") / "set"
    archive = find_archive()
    source = ["shapes", str(folder), "--limit", "1000"]
    if archive is not None:
        source = ["cifar10", str(folder), "--limit", "1000", "--archive", str(archive)]
    assert data_prep(source) == 0
    return folder


def params_sha256(
    data: Path, run: Path, *flags: str, mpi: str | None = None, ranks: int = 1, steps: int = STEPS
) -> str:
    """Train up to a step and return the final hash."""
    train: list[str | Path] = ["train", data, "--run-dir", run, "--max-steps", str(steps), "--json", *flags]
    done = dptrain(*train, cwd=run.parent, mpi=mpi, ranks=ranks)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["step"] == steps
    found: str = summary["params_sha256"]
    return found


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of one process with one thread, without MPI."""
    return params_sha256(data, tmp_path_factory.mktemp("runs") / "alone", "--threads", "1")


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize(
    ("mpi", "ranks", "threads"),
    [
        (None, 1, 2),
        ("openmpi", 2, 2),
        ("openmpi", 8, 1),
        ("mpich", 2, 1),
    ],
)
def test_ranks_threads_and_mpi_do_not_change_a_bit(
    data: Path, undisturbed: str, tmp_path: Path, mpi: str | None, ranks: int, threads: int
) -> None:
    found = params_sha256(data, tmp_path / "run", "--threads", str(threads), mpi=mpi, ranks=ranks)
    assert found == undisturbed


@pytest.mark.mpi
@pytest.mark.once
def test_stopping_on_two_ranks_and_resuming_on_three_does_not_change_a_bit(
    data: Path, undisturbed: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    halfway = params_sha256(data, run, mpi="openmpi", ranks=2, steps=5)
    assert halfway != undisturbed
    assert params_sha256(data, run, mpi="openmpi", ranks=3) == undisturbed
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["ranks"] for line in steps if line["event"] == "start"] == [2, 3]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 samples in 4 shards, so that the last microbatch of each is smaller."""
    return packed(tmp_path_factory.mktemp("small") / "set")


def test_another_seed_changes_the_bits(small: Path, tmp_path: Path) -> None:
    configs = [configuration(small, tmp_path / str(seed), seed=seed, max_steps=2) for seed in (0, 1)]
    assert len({run(config)[0]["params_sha256"] for config in configs}) == 2


CASES: dict[str, dict[str, Any]] = {
    "loss options": {"label_smoothing": 0.2, "class_weights": {"class-1": 3, "4": 0.5}, "balance_classes": True},
    **{f"--optimizer {name}": {"optimizer": name, "model_options": {"widths": [3, 5]}} for name in OPTIMIZERS},
    "--group-epochs": {"group_epochs": {"conv1": 1.2, "head": 0.5}, "model_options": {"widths": [3, 5]}},
    "--clip-norm": {"clip_norm": 0.5, "model_options": {"widths": [3, 5]}},
    **{
        f"--average {name}": {"average": name, "model": "every-layer", "model_options": {"layer": "BatchNorm2d"}}
        for name in AVERAGES
    },
    "--accumulate": {"accumulate": 2, "model": "every-layer", "model_options": {"layer": "BatchNorm2d"}},
    "linear": {"model": "linear", "model_options": {}},  # test_recipes_same_bits.py has all other networks
    **{name: {"model": "every-layer", "model_options": {"layer": name}} for name in every_layer.LAYERS},
}


# Three kinds are for launch/test.sh --quick: what couples samples, draws, or shares out an update.
QUICK = ("BatchNorm2d",)


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in CASES])
def test_every_optimizer_and_layer_gives_the_same_bits_on_ranks_threads_and_resumed(
    case: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of 7 steps; the resumed run stops after step 10, in the middle of the second."""
    monkeypatch.setitem(ARCHITECTURES, "every-layer", every_layer.build)

    def end(name: str, ranks: int, **changes: object) -> tuple[str, float]:
        """The final hash of the parameters, and the test loss, which also depends on the buffers."""
        config: TrainConfig = configuration(small, tmp_path / name, **{"lr": 0.003, **CASES[case], **changes})
        finished = on_ranks(ranks, lambda rank: train(config, rank))[0]
        assert finished is not None
        return finished.params_sha256, finished.test_loss

    expected = end("alone", 1)
    assert end("threads", 1, threads=2) == expected
    assert end("two", 2) == expected
    assert end("three", 3) == expected
    assert end("resumed", 3, max_steps=10) != expected
    assert end("resumed", 2) == expected
