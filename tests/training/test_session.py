"""dptrain.training.session: inputs that are refused before the first step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from mpi_runs import dptrain, own_mpi
from training_runs import LAST_STEP, STEPS_PER_EPOCH, configuration, flags, packed, run, session_and_state

from dptrain.errors import DptrainError, UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


def test_a_model_for_another_number_of_classes_is_refused(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "ten.py"
    model.write_text(
        "from dptrain.nn.layers.flatten import Flatten\nfrom dptrain.nn.layers.linear import Linear\n"
        "def build(input_shape, classes):\n    return [Flatten(), Linear(10)]\n"
    )
    with pytest.raises(UsageError, match="outputs 10 logits, but the data set has 5 classes"):
        session_and_state(configuration(data, tmp_path / "run", model=f"{model}:build", model_options={}))


@pytest.mark.parametrize(("max_steps", "last"), [(0, LAST_STEP), (5, 5), (LAST_STEP, LAST_STEP), (99, LAST_STEP)])
def test_max_steps_ends_the_run_but_does_not_change_the_schedule(
    max_steps: int, last: int, data: Path, tmp_path: Path
) -> None:
    limited, _ = session_and_state(configuration(data, tmp_path / "run", max_steps=max_steps))
    whole, _ = session_and_state(configuration(data, tmp_path / "run"))
    assert limited.last_step == last
    assert [limited.schedule(step) for step in range(LAST_STEP)] == [whole.schedule(step) for step in range(LAST_STEP)]


def test_the_schedule_warms_up_and_then_drops_by_epochs(data: Path, tmp_path: Path) -> None:
    config = configuration(
        data, tmp_path / "run", schedule="step", step_epochs=1.0, step_factor=0.5, lr=0.8, warmup_steps=4, epochs=3
    )
    schedule = session_and_state(config)[0].schedule
    found = [schedule(step) for step in range(3 * STEPS_PER_EPOCH)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8] + [0.8] * 7 + [0.4] * 7 + [0.2] * 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"optimizer_options": {"beta2": 0.9}},
            "--optimizer-options: SGD has no option 'beta2'; known: decoupled",
        ),
        ({"optimizer_options": {"momentum": 0.9}}, "--optimizer-options: momentum has a flag: give --momentum instead"),
        ({"optimizer_options": {"decoupled": "no"}}, "--optimizer-options: decoupled is 'no', expected true or false"),
        (
            {"optimizer": "adamw", "optimizer_options": {"epsilon": math.inf}},
            "epsilon is inf, expected a finite number",
        ),
        ({"average": "ema", "average_options": {"decay": True}}, "--average-options: decay is True, expected a finite"),
        ({"average": "ema", "average_options": {"every": 2}}, "EMA has no option 'every'; known: decay"),
        (
            {"group_lr": {"conv1": 0, "linear1": 0}},
            "--group-lr and --group-epochs freeze all parameters from the start",
        ),
        (
            {"group_lr": {"tail": 10}},
            "--group-lr: the network has no group 'tail'; known: bias, conv1, first, head, linear1, .* such as conv1",
        ),
        ({"average": "ema", "average_options": {"decay": 2}}, "--average-options {'decay': 2}: decay is 2, expected 0"),
        ({"average_options": {"every": 2}}, "--average-options {'every': 2}: there is no average; choose one with"),
        ({"optimizer": "muon", "optimizer_options": {"steps": "3"}}, "steps is '3', expected a whole number"),
        (
            {"group_decay": {"conv1": 1e300}},
            r"weight decay of a tensor is 2e\+297, more than a float32 number can be",
        ),
        ({"group_decay": {"frist": 0}}, "--group-decay: the network has no group 'frist'; did you mean 'first'?"),
    ],
)
def test_unknown_options_of_an_optimizer_are_refused(
    changes: dict[str, Any], words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        session_and_state(configuration(data, tmp_path / "run", **changes))


def test_a_number_of_epochs_without_end_is_accepted(data: Path, tmp_path: Path) -> None:
    endless = {"schedule": "step", "schedule_options": {"milestones": [1e308]}, "group_epochs": {"head": 1e308}}
    session, _ = session_and_state(configuration(data, tmp_path / "run", lr=0.5, warmup_steps=0, **endless))
    assert session.schedule(10**9) == 0.5


def test_no_more_threads_than_shards_are_started(data: Path, tmp_path: Path) -> None:
    assert session_and_state(configuration(data, tmp_path / "run", threads=64))[0].pool.size == 4
    assert session_and_state(configuration(data, tmp_path / "run", threads=3))[0].pool.size == 3


@pytest.mark.mpi
@pytest.mark.once
def test_more_ranks_than_shards_is_one_error_with_the_command_to_pack_again(data: Path, tmp_path: Path) -> None:
    done = dptrain("train", *flags(data, tmp_path / "run"), cwd=tmp_path, mpi=own_mpi(), ranks=5)
    assert done.returncode == 2
    assert done.stderr.count("dptrain: error:") == 1
    assert f"5 ranks, but {data} has 4 shards" in done.stderr
    assert "pack it again: as before, with --shards 5 --force (in a program: shards=5, force=True)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_failed_set_up_leaves_no_run_folder(data: Path, tmp_path: Path) -> None:
    for folder, changes in ((data, {"batch_size": 18}), (data, {"model": "nothing"}), (tmp_path, {})):
        with pytest.raises(DptrainError):
            run(configuration(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
