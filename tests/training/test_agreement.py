"""dptrain.training.agreement: ranks that were started with different flags or files, or run on different machines."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mpi_runs import mpirun, own_mpi
from training_runs import flags, packed

import dptrain as package
from dptrain.config.train import TrainConfig
from dptrain.errors import DptrainError
from dptrain.parallel.communicator import Communicator
from dptrain.training import agreement
from dptrain.training.agreement import agree_on, machine_notes, without_paths


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


class Ranks(Communicator):
    """Rank 0 of several; the first allgather returns these values of the others."""

    def __init__(self, *others: Any) -> None:
        self.others, self.size = others, 1 + len(others)
        self.first = True

    def allgather(self, value: Any) -> list[Any]:
        if self.first:
            self.first = False
            return [value, *self.others]
        return [value] * self.size


def test_different_machines_are_reported() -> None:
    python = f"{sys.executable} {platform.python_version()}, dptrain {package.__version__}"
    one, other = {"cpu": "x", "numpy": "2"}, {"cpu": "y", "numpy": "2"}
    assert machine_notes(one, Ranks(("host2", python, one))) == []
    assert machine_notes(one, Ranks(("host2", python, one), ("host3", python, other))) == [
        "the ranks' machines differ (cpu): bits may depend on the number of ranks"
    ]
    portable = [{"cpu": f"{name} (portable)", "numpy": "2"} for name in "xy"]
    assert machine_notes(portable[0], Ranks(("host3", python, portable[1]))) == []
    old = "/usr/bin/python3 3.9.2, dptrain 0.1.0"
    (note,) = machine_notes(one, Ranks(("host1", python, one), ("host2", old, one)))
    assert note.startswith(f"rank 2 on host2 runs another Python: {old}; rank 0: {python}.")
    assert "mpirun -x PATH" in note


def test_only_paths_may_differ_between_hosts() -> None:
    here = TrainConfig(data="/scratch/a/set", run_dir="runs/one", model="/home/a/net.py:tiny")
    there = replace(here, data="/data/set", run_dir="/data/runs/one", model="/home/b/net.py:tiny")
    assert without_paths(here) == without_paths(there)
    for other in (replace(here, lr=0.5), replace(here, model="/home/a/net.py:large"), replace(here, epochs=3)):
        assert without_paths(here) != without_paths(other)


def test_a_rank_with_a_different_value_is_reported() -> None:
    same, other = ("host1", {"lr": 0.1, "seed": 0}), ("host2", {"lr": 0.2, "seed": 0})
    agree_on("configuration", same[1], Ranks(same, same))
    with pytest.raises(
        DptrainError, match=r"rank 2 on host2 has another configuration .*: lr is 0\.2, not 0\.1; start all"
    ):
        agree_on("configuration", same[1], Ranks(same, other))


def test_the_cpu_has_a_name_even_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert agreement._cpu_model()


@pytest.mark.mpi
@pytest.mark.once
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--lr=0.2", "--lr=0.1"),
        ("--no-elastic", "--elastic"),
    ],
)
def test_ranks_with_different_flags_end_with_one_error(one: str, other: str, data: Path, tmp_path: Path) -> None:
    """A program that gives rank 1 another flag, as a wrong wrapper script would."""
    program = tmp_path / "wrapper.py"
    program.write_text(
        "import sys\nfrom dptrain.commands.main import main\nfrom dptrain.parallel.mpi import launched_rank\n"
        f"sys.exit(main(['train', *sys.argv[1:], {other!r} if launched_rank() else {one!r}]))\n"
    )
    done = mpirun(own_mpi(), 2, program, *flags(data, tmp_path / "run"), cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    assert "has another configuration than rank 0" in done.stderr
    assert not (tmp_path / "run").exists()
