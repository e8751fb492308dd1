"""dptrain.training.loop: a run that is stopped anywhere and resumed ends with the bits of an uninterrupted run."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from mpi_runs import dptrain, own_mpi
from selection import examples, quick_first
from training_runs import (
    BATCH_SIZE,
    LAST_STEP,
    STEPS_PER_EPOCH,
    TEST,
    TRAIN,
    Memory,
    configuration,
    flags,
    packed,
    run,
    session_and_state,
)

from dptrain.checkpoint import writer
from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import checkpoint_bytes, read_checkpoint
from dptrain.config.train import TrainConfig
from dptrain.errors import CheckpointError, PreemptedError, TrainingError, UsageError
from dptrain.health.interruption import Interruption
from dptrain.parallel.communicator import Communicator
from dptrain.system.durable import write_durably
from dptrain.training.events import Event, StepFinished
from dptrain.training.loop import train

AUGMENTED = {"crop": "reflect", "flip": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("loop") / "set")


@pytest.fixture(scope="module", params=["plain", "augmented"])
def undisturbed(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, Memory]:
    """Options, run folder and events of an uninterrupted run."""
    options = AUGMENTED if request.param == "augmented" else {}
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return options, folder, run(configuration(data, folder, **options))[1]


def last_checkpoint(folder: Path) -> Path:
    return sorted((folder / "checkpoints").iterdir())[-1]


def assert_same_end(folder: Path, memory: Memory, undisturbed: tuple[dict[str, Any], Path, Memory]) -> None:
    """The final parameters, momentum, epoch sums and evaluation are equal to the bit."""
    _, other_folder, other = undisturbed
    state, expected = (read_checkpoint(last_checkpoint(one)).state for one in (folder, other_folder))
    assert state.digest() == expected.digest()
    assert state.progress == expected.progress
    assert memory.evaluations[-1] == other.evaluations[-1]


def test_every_sample_is_used_once_per_epoch_with_the_scheduled_rate(
    undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    memory = undisturbed[2]
    schedule = session_and_state(configuration(data, tmp_path))[0].schedule
    assert [step for step, *_ in memory.steps] == list(range(1, LAST_STEP + 1))
    assert [lr for *_, lr in memory.steps] == [schedule(step) for step in range(LAST_STEP)]
    for epoch in (0, 1):
        of_epoch = memory.steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
        sizes = [BATCH_SIZE] * (STEPS_PER_EPOCH - 1) + [TRAIN % BATCH_SIZE]
        step, loss, accuracy, _, _ = memory.evaluations[epoch]
        assert step == (epoch + 1) * STEPS_PER_EPOCH
        for figure, of_step in ((loss, 1), (accuracy, 2)):
            parts = zip(of_epoch, sizes, strict=True)
            assert figure == pytest.approx(sum(one[of_step] * size for one, size in parts) / TRAIN)
    assert memory.finished is not None
    assert memory.finished.test_samples == TEST


@pytest.mark.slow
@given(
    stops=st.lists(st.integers(1, LAST_STEP - 1), min_size=1, max_size=3, unique=True).map(sorted),
    threads=st.lists(st.sampled_from([1, 2, 4]), min_size=4, max_size=4),
)
@examples(8, HealthCheck.function_scoped_fixture)
def test_a_run_stopped_and_resumed_at_any_steps_ends_with_the_same_bits(
    stops: list[int], threads: list[int], undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    reached = 0
    for stop, count in zip([*stops, 0], threads, strict=False):
        config = configuration(data, folder, max_steps=stop, threads=count, **undisturbed[0])
        summary, memory = run(config)
        assert [step for step, *_ in memory.steps] == list(range(reached + 1, (stop or LAST_STEP) + 1))
        reached = summary["step"]
    assert_same_end(folder, memory, undisturbed)


@quick_first("broken_off", [5, 6, 7, 11], quick=2)
def test_an_interrupted_run_resumes_from_its_last_checkpoint(
    broken_off: int, undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    config = configuration(data, tmp_path / "run", checkpoint_every="3", **undisturbed[0])
    with pytest.raises(KeyboardInterrupt):
        train(config, Communicator(), [Memory(interrupt_after=broken_off)])
    _, memory = run(config)
    # Checkpoints are at multiples of 3 and at the end of the epoch, 7; the one of this step was not yet written.
    saved = [step for step in (3, 6, 7, 9) if step < broken_off]
    assert memory.steps[0][0] == saved[-1] + 1
    assert memory.resumed is not None
    assert_same_end(tmp_path / "run", memory, undisturbed)


class AskedAfter(Memory, Interruption):
    """A reporter that, once it has received a step, asks the run to end; it is the interruption as well."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.asked_after = step

    def handle(self, event: Event) -> None:
        super().handle(event)
        if isinstance(event, StepFinished) and event.step == self.asked_after:
            self.signal_name = "SIGTERM"


@quick_first("signalled", [1, 7, 8, 2, 6, 13, 14], quick=3)
def test_a_run_stopped_by_a_signal_saves_and_does_the_rest_when_resumed(
    signalled: int, undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    """At the end of an epoch (7, 14) the resumed run makes the evaluation; elsewhere one more step is made."""
    config = configuration(data, tmp_path / "run", **undisturbed[0])
    first = AskedAfter(signalled)
    stopped = signalled if signalled % STEPS_PER_EPOCH == 0 else signalled + 1
    with pytest.raises(PreemptedError, match=rf"stopped by SIGTERM: step-{stopped:08d}\.h5 is written"):
        train(config, Communicator(), [first], first)
    assert last_checkpoint(tmp_path / "run").name == f"step-{stopped:08d}.h5"
    _, second = run(config)
    assert [*first.steps, *second.steps] == undisturbed[2].steps
    assert [*first.evaluations, *second.evaluations] == undisturbed[2].evaluations
    assert_same_end(tmp_path / "run", second, undisturbed)


def test_a_named_checkpoint_is_resumed_in_another_folder(
    undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    run(configuration(data, tmp_path / "first", max_steps=4, **undisturbed[0]))
    start = last_checkpoint(tmp_path / "first")
    _, memory = run(configuration(data, tmp_path / "second", resume=str(start), **undisturbed[0]))
    assert memory.resumed == start
    assert memory.steps[0][0] == 5
    assert_same_end(tmp_path / "second", memory, undisturbed)
    assert last_checkpoint(tmp_path / "first") == start


def written_steps(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train; the steps of the checkpoints in the order in which they were written."""
    written: list[int] = []
    save = RunFolder.save

    def saving(folder: RunFolder, step: int, content: bytes, test_accuracy: float | None) -> Path:
        path = save(folder, step, content, test_accuracy)
        written.append(read_checkpoint(path).state.step)
        return path

    monkeypatch.setattr(RunFolder, "save", saving)
    run(config)
    return written


def test_checkpoints_are_written_at_each_step_interval_each_epoch_and_at_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(data, tmp_path / "run", checkpoint_every="4", max_steps=10)
    assert written_steps(config, monkeypatch) == [4, 7, 8, 10]


def test_checkpoints_are_written_at_each_time_interval(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock advances by a second at each reading; each step and each checkpoint reads it once."""
    ticks = itertools.count()
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    config = configuration(data, tmp_path / "run", checkpoint_every="3s", max_steps=10)
    assert written_steps(config, monkeypatch) == [3, 6, 7, 10]


def test_resume_set_to_never_refuses_a_used_folder_and_changes_nothing(data: Path, tmp_path: Path) -> None:
    run(configuration(data, tmp_path / "run", max_steps=2))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"already holds a run \(step-00000002\.h5\)"):
        run(configuration(data, tmp_path / "run", resume="never", lr=0.5))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    summary, _ = run(configuration(data, tmp_path / "new", resume="never", max_steps=2))
    assert summary["step"] == 2


def test_a_missing_checkpoint_to_resume_from_is_an_error_and_makes_no_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there; expected auto, never, a checkpoint or run folder"):
        run(configuration(data, tmp_path / "run", resume="atuo"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_only_evaluated_again(
    undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    options, folder, first = undisturbed
    shutil.copytree(folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()}
    summary, again = run(configuration(data, tmp_path / "run", **options))
    assert again.steps == []
    assert again.evaluations == first.evaluations[-1:]
    assert summary["step"] == LAST_STEP
    assert {path.name: path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()} == before


def test_the_last_event_describes_the_last_state(
    undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    summary, memory = run(configuration(data, tmp_path / "run", **undisturbed[0]))
    *_, test_loss, test_accuracy = memory.evaluations[-1]
    state = read_checkpoint(last_checkpoint(tmp_path / "run")).state
    assert (summary["step"], summary["test_loss"], summary["test_accuracy"]) == (LAST_STEP, test_loss, test_accuracy)
    assert summary["params_sha256"] == state.params_sha256
    assert summary["run_dir"] == str(tmp_path / "run")


def test_a_broken_newest_checkpoint_costs_steps_but_not_the_result(
    undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    run(configuration(data, tmp_path / "run", checkpoint_every="2", max_steps=6, **undisturbed[0]))
    newest = last_checkpoint(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:700])
    _, memory = run(configuration(data, tmp_path / "run", **undisturbed[0]))
    assert any("skipped" in line and newest.name in line for line in memory.lines)
    assert memory.steps[0][0] == 5
    assert_same_end(tmp_path / "run", memory, undisturbed)


def test_the_best_checkpoint_from_before_a_resume_is_kept_to_the_end(data: Path, tmp_path: Path) -> None:
    run(configuration(data, tmp_path / "run", max_steps=STEPS_PER_EPOCH, epochs=6))
    best = last_checkpoint(tmp_path / "run")
    read = read_checkpoint(best)
    read.state.progress.test_accuracy = 1.0  # the next five epochs cannot be better on random labels
    write_durably(best, checkpoint_bytes(read.state, read.origin, read.layouts))
    run(configuration(data, tmp_path / "run", epochs=6))
    kept = [int(path.stem.split("-")[1]) for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*"))]
    assert kept == [7, 28, 35, 42]
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.h5").state.step == 7


def test_a_changed_learning_rate_is_noted_and_used(data: Path, tmp_path: Path) -> None:
    run(configuration(data, tmp_path / "run", max_steps=5))
    _, memory = run(configuration(data, tmp_path / "run", lr=0.5, schedule="constant"))
    assert "changed since the checkpoint: --lr 0.05 there, 0.5 here" in memory.lines
    assert {lr for *_, lr in memory.steps} == {0.5}


def test_the_mpi_reduction_equals_the_tree_up_to_rounding(data: Path, tmp_path: Path) -> None:
    states = []
    for reduction in ("tree", "mpi"):
        run(configuration(data, tmp_path / reduction, reduction=reduction))
        states.append(read_checkpoint(last_checkpoint(tmp_path / reduction)).state)
    tree, mpi = states
    assert np.linalg.norm(tree.parameters - mpi.parameters) < 1e-5 * np.linalg.norm(tree.parameters)
    assert mpi.progress.samples_seen == 2 * TRAIN


def test_a_run_can_resume_from_the_newest_checkpoint_of_another_run(data: Path, tmp_path: Path) -> None:
    run(configuration(data, tmp_path / "one", max_steps=5))
    _, memory = run(configuration(data, tmp_path / "two", resume=str(tmp_path / "one")))
    assert memory.steps[0][0] == 6
    assert "resume" not in (tmp_path / "two" / "config.toml").read_text()  # the file is for new runs


def test_a_state_that_was_never_evaluated_is_saved_with_its_accuracy(data: Path, tmp_path: Path) -> None:
    """Stopped at a checkpoint within an epoch, then resumed with that step as the last one."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(configuration(data, folder, checkpoint_every="3"), Communicator(), [Memory(interrupt_after=4)])
    summary, _ = run(configuration(data, folder, max_steps=3))
    assert (
        read_checkpoint(folder / "checkpoints" / "step-00000003.h5").state.progress.test_accuracy
        == summary["test_accuracy"]
    )


def test_parameters_that_diverge_in_the_last_step_are_not_saved(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 1: the test loss is (nan|inf)"):
        run(configuration(data, tmp_path / "run", lr=1e38, warmup_steps=0, max_steps=1))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("end", [{"checkpoint_every": "1"}, {"max_steps": 1}], ids=["checkpoint", "evaluation"])
def test_parameters_that_an_update_makes_infinite_are_named_and_not_saved(
    end: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    message = r"step 1: after the update the parameter conv1\.weight holds (nan|-inf|inf)"
    with pytest.raises(TrainingError, match=message):
        run(configuration(data, tmp_path / "run", lr=1e39, warmup_steps=0, **end))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_resuming_an_earlier_checkpoint_in_the_same_folder_is_refused(data: Path, tmp_path: Path) -> None:
    """The repeated steps would overwrite those of the first attempt."""
    folder = tmp_path / "run"
    run(configuration(data, folder, checkpoint_every="3"))
    earlier = sorted((folder / "checkpoints").glob("step-*"))[0]
    with pytest.raises(UsageError, match=r"holds later checkpoints \(step-00000014\.h5\).*choose another --run-dir"):
        run(configuration(data, folder, resume=str(earlier)))
    run(configuration(data, tmp_path / "other", resume=str(earlier)))
    hashes = {read_checkpoint(last_checkpoint(path)).state.digest() for path in (folder, tmp_path / "other")}
    assert len(hashes) == 1


@pytest.mark.quick
@pytest.mark.mpi
@pytest.mark.parametrize("undisturbed", ["augmented"], indirect=True)
def test_a_run_stopped_on_two_ranks_and_resumed_on_three_has_the_bits_of_one_process(
    undisturbed: tuple[dict[str, Any], Path, Memory], data: Path, tmp_path: Path
) -> None:
    options, folder, memory = undisturbed
    for ranks, stop in ((2, 5), (3, 0)):
        words = flags(data, tmp_path / "run", max_steps=stop, **options)
        done = dptrain("train", *words, "--json", cwd=tmp_path, mpi=own_mpi(), ranks=ranks)
        assert done.returncode == 0, done.stderr
    states = [read_checkpoint(last_checkpoint(path)).state for path in (folder, tmp_path / "run")]
    assert states[0].digest() == states[1].digest()
    assert json.loads(done.stdout.splitlines()[-1])["test_loss"] == memory.evaluations[-1][3]
    assert done.stdout.count("params_sha256 ") == 1


@pytest.mark.mpi
def test_two_ranks_with_the_mpi_reduction_train_the_same_network_up_to_rounding(data: Path, tmp_path: Path) -> None:
    run(configuration(data, tmp_path / "tree"))
    words = flags(data, tmp_path / "mpi", reduction="mpi")
    done = dptrain("train", *words, cwd=tmp_path, mpi=own_mpi(), ranks=2)
    assert done.returncode == 0, done.stderr
    tree, mpi = (read_checkpoint(last_checkpoint(tmp_path / one)).state for one in ("tree", "mpi"))
    assert np.linalg.norm(tree.parameters - mpi.parameters) < 1e-5 * np.linalg.norm(tree.parameters)
    assert mpi.progress.samples_seen == 2 * TRAIN


SLOW_NET = """
import time
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear

class Slow(Flatten):
    def forward(self, x, call):
        time.sleep(0.004)
        return super().forward(x, call)

def build(input_shape, classes):
    return [Slow(), Linear(classes)]
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "slow.py"
    model.write_text(SLOW_NET)
    options = {"model": f"{model}:build", "model_options": {}, "checkpoint_every": "1", "epochs": 8}
    summary, _ = run(configuration(data, tmp_path / "whole", **options))
    command = [sys.executable, "-m", "dptrain", "train", *flags(data, tmp_path / "run", **options)]
    checkpoints, reached = tmp_path / "run" / "checkpoints", 0
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
            deadline = time.monotonic() + 60
            names: list[str] = []
            while not names or int(names[-1][5:13]) < reached + 5:
                names = sorted(path.name for path in checkpoints.glob("step-*")) if checkpoints.exists() else []
                assert time.monotonic() < deadline
                assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
        reached = int(names[-1][5:13])
    assert 10 <= reached < 8 * STEPS_PER_EPOCH
    again, memory = run(configuration(data, tmp_path / "run", **options))
    assert memory.steps[0][0] > reached
    assert again["params_sha256"] == summary["params_sha256"]
    assert BATCH_SIZE * reached < 8 * TRAIN
