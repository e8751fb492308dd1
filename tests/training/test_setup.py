"""dptrain.training.setup: what is refused before the first step, and what is only noted."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mpi_runs import dptrain, mpirun, own_mpi
from training_runs import (
    LAST_STEP,
    STEPS_PER_EPOCH,
    configuration,
    flags,
    packed,
    run,
    session_and_state,
)

import dptrain as package
from dptrain.checkpoint.format import Checkpoint
from dptrain.config.train import TrainConfig
from dptrain.data.manifest import read_manifest
from dptrain.errors import CheckpointError, DptrainError, UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.training import setup
from dptrain.training.setup import (
    agree_on,
    check_resumable,
    count_steps,
    machine_notes,
    python_notes,
    without_paths,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("setup") / "set")


@pytest.mark.parametrize(
    ("train", "shards", "batch_size"), [(101, 4, 16), (100, 4, 100), (100, 4, 4), (9, 8, 8), (7, 1, 3), (5, 5, 500)]
)
def test_steps_an_epoch_are_those_of_the_largest_shard(
    train: int, shards: int, batch_size: int, tmp_path: Path
) -> None:
    manifest = read_manifest(packed(tmp_path / "set", train=train, test=8, shards=shards))
    assert count_steps(manifest, batch_size) == math.ceil(math.ceil(train / shards) / (batch_size // shards))


@pytest.mark.parametrize(
    ("batch_size", "nearest"), [(18, "16 and 20"), (3, "that are: 4"), (1, "that are: 4"), (7, "4 and 8")]
)
def test_a_batch_size_that_the_shards_cannot_share_names_the_nearest(batch_size: int, nearest: str, data: Path) -> None:
    with pytest.raises(UsageError, match=f"--batch-size {batch_size} is not a multiple of the 4 shards.*{nearest}"):
        count_steps(read_manifest(data), batch_size)


def test_a_model_for_another_number_of_classes_is_refused(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "ten.py"
    model.write_text(
        "from dptrain.nn.layers.activation import Flatten\nfrom dptrain.nn.layers.linear import Linear\n"
        "def build(input_shape, classes):\n    return [Flatten(), Linear(10)]\n"
    )
    with pytest.raises(UsageError, match="puts out 10 logits, but the data set has 5 classes"):
        session_and_state(configuration(data, tmp_path / "run", model=f"{model}:build", model_options={}))


@pytest.mark.parametrize(("max_steps", "last"), [(0, LAST_STEP), (5, 5), (LAST_STEP, LAST_STEP), (99, LAST_STEP)])
def test_max_steps_ends_the_run_but_leaves_the_schedule(max_steps: int, last: int, data: Path, tmp_path: Path) -> None:
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
        ({"optimizer_options": {"beta2": 0.9}}, "--optimizer-options: sgd has no option 'beta2'; it has none"),
        ({"optimizer_options": {"momentum": 0.9}}, "--optimizer-options: sgd has no option 'momentum'; use --momentum"),
        ({"group_lr": {"head": 10}}, "--group-lr: the network has no group 'head'; known: default"),
    ],
)
def test_options_that_the_optimizer_does_not_have_are_refused(
    changes: dict[str, Any], words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        session_and_state(configuration(data, tmp_path / "run", **changes))


def test_no_more_threads_than_shards_are_started(data: Path, tmp_path: Path) -> None:
    assert session_and_state(configuration(data, tmp_path / "run", threads=64))[0].pool.size == 4
    assert session_and_state(configuration(data, tmp_path / "run", threads=3))[0].pool.size == 3


def resumable(config: Any, **changes: Any) -> list[str]:
    """Notes of resuming a checkpoint of `config` with some values changed."""
    before, state = session_and_state(config)
    after = replace(config, **changes)
    session, _ = session_and_state(after)
    checkpoint = Checkpoint(state, before.origin, before.take_step.layouts)
    return check_resumable(Path("a.h5"), checkpoint, after, session.origin)


def test_nothing_is_noted_when_nothing_has_changed(data: Path, tmp_path: Path) -> None:
    assert resumable(configuration(data, tmp_path / "run")) == []


def test_what_only_concerns_the_process_may_change_silently(data: Path, tmp_path: Path) -> None:
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
        ("weight_decay", 0.0, "--weight-decay 0.0005 there, 0.0 here"),
    ],
)
def test_what_changes_the_arithmetic_is_noted(key: str, value: object, note: str, data: Path, tmp_path: Path) -> None:
    assert resumable(configuration(data, tmp_path / "run"), **{key: value}) == [f"changed since the checkpoint: {note}"]


def test_another_reduction_is_noted_as_such_and_as_other_bits(data: Path, tmp_path: Path) -> None:
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
    with pytest.raises(
        CheckpointError, match=r"another architecture: it has input, where there is input \(2, 6, 7\) here"
    ):
        check_resumable(Path("a.h5"), checkpoint, config, session.origin)


def test_another_algorithm_of_a_layer_is_noted_and_does_not_make_a_checkpoint_unusable(
    data: Path, tmp_path: Path
) -> None:
    config = configuration(data, tmp_path / "run")
    session, state = session_and_state(config)
    refitted = replace(session.origin, tuning={"conv1": {"algorithm": "winograd4"}})
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


class Ranks(Communicator):
    """Rank 0 of several, whose others say what they are given to say."""

    def __init__(self, *others: Any) -> None:
        self.others, self.size = others, 1 + len(others)
        self.first = True

    def allgather(self, value: Any) -> list[Any]:
        if self.first:
            self.first = False
            return [value, *self.others]
        return [value] * self.size


def test_ranks_on_unlike_machines_are_noted() -> None:
    one, other = {"cpu": "x", "numpy": "2"}, {"cpu": "y", "numpy": "2"}
    assert machine_notes(one, Ranks(one, one)) == []
    assert machine_notes(one, Ranks(one, other)) == [
        "the ranks' machines differ (cpu): bits may depend on the number of ranks"
    ]


def test_another_python_is_noted_with_its_host() -> None:
    own = f"{sys.executable} {platform.python_version()}, dptrain {package.__version__}"
    assert python_notes(Ranks(("host2", own))) == []
    (note,) = python_notes(Ranks(("host1", own), ("host2", "/usr/bin/python3 3.9.2, dptrain 0.1.0")))
    assert note.startswith("rank 2 on host2 runs another Python: /usr/bin/python3 3.9.2, dptrain 0.1.0; rank 0: ")
    assert "mpirun -x PATH" in note


def test_paths_may_differ_between_hosts_and_all_else_may_not() -> None:
    here = TrainConfig(data="/scratch/a/set", run_dir="runs/one", model="/home/a/net.py:tiny")
    there = replace(here, data="/data/set", run_dir="/data/runs/one", model="/home/b/net.py:tiny")
    assert without_paths(here) == without_paths(there)
    for other in (replace(here, lr=0.5), replace(here, model="/home/a/net.py:large"), replace(here, epochs=3)):
        assert without_paths(here) != without_paths(other)


def test_a_rank_with_something_else_is_named_with_both_values() -> None:
    same, other = ("host1", {"lr": 0.1, "seed": 0}), ("host2", {"lr": 0.2, "seed": 0})
    agree_on("configuration", same[1], Ranks(same, same))
    with pytest.raises(
        DptrainError, match=r"rank 2 on host2 has another configuration .*: lr is 0\.2 there, 0\.1 on rank 0"
    ):
        agree_on("configuration", same[1], Ranks(same, other))


def test_the_cpu_is_told_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert setup._cpu_model()


@pytest.mark.mpi
def test_more_ranks_than_shards_is_one_error_with_the_command_to_pack_again(data: Path, tmp_path: Path) -> None:
    done = dptrain("train", *flags(data, tmp_path / "run"), cwd=tmp_path, mpi=own_mpi(), ranks=5)
    assert done.returncode == 2
    assert done.stderr.count("dptrain: error:") == 1
    assert f"5 ranks, but {data} has 4 shards" in done.stderr
    assert "pack it again: as before, with --shards 5 --force (in a program: shards=5, force=True)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--lr=0.2", "--lr=0.1"),
        ("--threads=1", "--threads=0"),
        ("--stall-limit=60", "--stall-limit=0"),
        ("--no-elastic", "--elastic"),
    ],
)
def test_ranks_started_with_unlike_flags_end_with_one_error(one: str, other: str, data: Path, tmp_path: Path) -> None:
    """A program that gives rank 1 another flag, as a wrong wrapper script would."""
    program = tmp_path / "wrapper.py"
    program.write_text(
        "import sys\nfrom dptrain.commands.main import main\nfrom dptrain.parallel.communicator import launched_rank\n"
        f"sys.exit(main(['train', *sys.argv[1:], {other!r} if launched_rank() else {one!r}]))\n"
    )
    done = mpirun(own_mpi(), 2, program, *flags(data, tmp_path / "run"), cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("dptrain: error:") == 1
    assert "has another configuration than rank 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_failed_set_up_leaves_no_run_folder(data: Path, tmp_path: Path) -> None:
    for folder, changes in ((data, {"batch_size": 18}), (data, {"model": "nothing"}), (tmp_path, {})):
        with pytest.raises(DptrainError):
            run(configuration(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
