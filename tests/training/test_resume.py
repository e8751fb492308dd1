"""dptrain.training.resume: which checkpoints are refused, and which changes are only reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from thread_ranks import on_ranks
from training_runs import configuration, packed, session_and_state

from dptrain.checkpoint.format import Checkpoint, checkpoint_bytes, read_checkpoint
from dptrain.errors import CheckpointError
from dptrain.training.loop import train
from dptrain.training.resume import check_resumable


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


def resumable(config: Any, **changes: Any) -> list[str]:
    """Notes of resuming a checkpoint of `config` with some values changed."""
    before, state = session_and_state(config)
    after = replace(config, **changes)
    session, _ = session_and_state(after)
    checkpoint = Checkpoint(state, before.origin, before.take_step.layouts)
    return check_resumable(Path("a.h5"), checkpoint, after, session.origin)


def test_a_default_warm_up_that_changes_with_epochs_is_not_reported(data: Path, tmp_path: Path) -> None:
    """It follows --epochs: 14 steps have a warm-up of 1, 63 steps one of 6."""
    config = configuration(data, tmp_path / "run", warmup_steps=-1)
    assert resumable(config, epochs=9) == ["changed since the checkpoint: --epochs 2 there, 9 here"]
    assert resumable(config, warmup_steps=1) == []  # written in another way
    assert resumable(config, warmup_steps=5) == ["changed since the checkpoint: --warmup-steps -1 there, 5 here"]


def test_nothing_is_noted_when_nothing_has_changed(data: Path, tmp_path: Path) -> None:
    assert resumable(configuration(data, tmp_path / "run")) == []


def test_keys_of_the_process_may_change_without_a_note(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "run")
    changes = {"threads": 2, "max_steps": 5, "checkpoint_every": "3", "log_every": 9, "run_dir": "x", "resume": "a.h5"}
    assert resumable(config, **changes) == []


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("lr", 0.01, "--lr 0.05 there, 0.01 here"),
        ("momentum", 0.5, "--momentum 0.9 there, 0.5 here"),
        ("nesterov", False, "--nesterov True there, False here"),
        ("epochs", 9, "--epochs 2 there, 9 here"),
        ("crop", "zero", "--crop none there, zero here"),
        ("flip", True, "--flip False there, True here"),
        ("schedule", "constant", "--schedule cosine there, constant here"),
        ("weight_decay", 0.0, "--weight-decay 0.002 there, 0.0 here"),
    ],
)
def test_a_changed_key_that_affects_the_bits_is_reported(
    key: str, value: object, note: str, data: Path, tmp_path: Path
) -> None:
    assert resumable(configuration(data, tmp_path / "run"), **{key: value}) == [f"changed since the checkpoint: {note}"]


def test_another_reduction_is_noted_with_its_effect_on_the_bits(data: Path, tmp_path: Path) -> None:
    notes = resumable(configuration(data, tmp_path / "run"), reduction="mpi")
    assert any("--reduction tree there, mpi here" in note for note in notes)
    assert any("bits may differ" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "--seed 0 there, 1 here"),
        ({"batch_size": 20}, "--batch-size 16 there, 20 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"a\.h5: of another run") as caught:
        resumable(configuration(data, tmp_path / "run"), **changes)
    assert words in str(caught.value)


def test_a_checkpoint_of_another_data_set_is_refused(data: Path, tmp_path: Path) -> None:
    other = packed(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"a\.h5: made with another data set \(random, manifest"):
        resumable(configuration(data, tmp_path / "run"), data=str(other))


def test_a_copy_of_the_data_set_elsewhere_is_the_same_data_set(data: Path, tmp_path: Path) -> None:
    assert resumable(configuration(data, tmp_path / "run"), data=str(packed(tmp_path / "copy"))) == []


def test_an_architecture_file_edited_under_the_same_name_is_refused(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "run")
    session, state = session_and_state(config)
    edited = replace(session.origin, spec={"layers": []}, architecture=("input", "something else"))
    checkpoint = Checkpoint(state, edited, session.take_step.layouts)
    with pytest.raises(CheckpointError, match=r"another architecture: it has input, expected input \(2, 6, 7\)"):
        check_resumable(Path("a.h5"), checkpoint, config, session.origin)


def test_another_algorithm_of_a_layer_is_noted_and_the_checkpoint_stays_usable(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "run")
    session, state = session_and_state(config)
    refitted = replace(session.origin, tuning=session.origin.tuning | {"conv1": {"algorithm": "fft"}})
    checkpoint = Checkpoint(state, refitted, session.take_step.layouts)
    (note,) = check_resumable(Path("a.h5"), checkpoint, config, session.origin)
    assert note.startswith("another algorithm of conv1 than the checkpoint's: bits may differ")


@pytest.mark.parametrize("key", ["numpy", "blas", "blas_core", "cpu"])
def test_another_machine_is_noted_in_one_line(key: str, data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "run")
    session, state = session_and_state(config)
    moved = replace(session.origin, environment={**session.origin.environment, key: "another"})
    notes = check_resumable(Path("a.h5"), Checkpoint(state, moved, session.take_step.layouts), config, session.origin)
    assert len(notes) == 1
    assert f"another {key} than the checkpoint's: bits may differ" in notes[0]


def test_a_portable_run_may_continue_on_another_cpu(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "run")
    session, state = session_and_state(config)
    here, there = (
        replace(session.origin, environment={**session.origin.environment, "cpu": f"{name} (portable)"})
        for name in ("one", "another")
    )
    checkpoint = Checkpoint(state, there, session.take_step.layouts)
    assert check_resumable(Path("a.h5"), checkpoint, config, here) == []
    (note,) = check_resumable(Path("a.h5"), checkpoint, config, session.origin)
    assert note.startswith("another cpu than the checkpoint's: bits may differ")


def test_a_portable_run_that_continues_without_the_flag_on_the_same_cpu_says_so(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "run")
    session, state = session_and_state(config)
    cpu = f"{session.origin.environment['cpu']} (portable)"
    portable = replace(session.origin, environment={**session.origin.environment, "cpu": cpu})
    checkpoint = Checkpoint(state, portable, session.take_step.layouts)
    (note,) = check_resumable(Path("a.h5"), checkpoint, config, session.origin)
    assert note.startswith("another --portable than the checkpoint's: bits may differ")


def test_a_checkpoint_from_before_an_argument_was_added_to_a_layer_is_resumed(data: Path, tmp_path: Path) -> None:
    def end(steps: int) -> str:
        (finished,) = on_ranks(1, lambda rank: train(configuration(data, tmp_path / "run", max_steps=steps), rank))
        assert finished is not None
        return finished.params_sha256

    end(4)
    (path,) = (tmp_path / "run" / "checkpoints").glob("step-*.h5")
    checkpoint = read_checkpoint(path)
    spec: dict[str, Any] = json.loads(json.dumps(checkpoint.origin.spec))
    assert spec["layers"][0].pop("bias")
    older = replace(checkpoint.origin, spec=spec)
    path.write_bytes(checkpoint_bytes(checkpoint.state, older, checkpoint.layouts))
    assert json.loads(json.dumps(read_checkpoint(path).origin.spec)) == spec
    assert end(6)
