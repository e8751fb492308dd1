"""The validation split: its figures, the best checkpoint, early stopping, on any number of ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_runs import dptrain_here
from data_sets import image_data
from thread_ranks import on_ranks
from training_runs import EPOCHS, STEPS_PER_EPOCH, Memory, configuration, packed, run

from data_prep.pack import pack
from dptrain.checkpoint.format import read_checkpoint
from dptrain.errors import UsageError
from dptrain.parallel.communicator import Communicator
from dptrain.training import loop
from dptrain.training.evaluate import Evaluation, evaluate
from dptrain.training.events import EvaluationFinished, Event
from dptrain.training.loop import train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """101 training, 37 test and 29 validation samples in 4 shards."""
    validation = image_data(29, 1, 5, (2, 6, 7), seed=1).train
    pack(tmp_path / "data", replace(image_data(shape=(2, 6, 7)), validation=validation), shards=4)
    return tmp_path / "data"


class Evaluations:
    """A reporter that keeps the events of evaluations."""

    def __init__(self) -> None:
        self.events: list[EvaluationFinished] = []

    def handle(self, event: Event) -> None:
        if isinstance(event, EvaluationFinished):
            self.events.append(event)

    def close(self) -> None:
        pass


def with_accuracies(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> None:
    """The accuracies of the validation split, one an evaluation, in the place of those that are computed."""
    left = list(accuracies)

    def changed(*arguments: Any, **options: Any) -> Evaluation:
        found = evaluate(*arguments, **options)
        if found.samples != 29:
            return found
        right = round(29 * left.pop(0))
        return replace(found, class_samples=(29,), class_correct=(right,))

    monkeypatch.setattr(loop, "evaluate", changed)


def test_the_figures_are_those_of_an_evaluation_of_the_split(data: Path, tmp_path: Path) -> None:
    reporter = Evaluations()
    finished = train(configuration(data, tmp_path / "run"), Communicator(), [reporter])
    assert finished is not None
    last = reporter.events[-1]
    for split, loss, accuracy, samples in (
        ("validation", last.validation_loss, last.validation_accuracy, 29),
        ("test", last.test_loss, last.test_accuracy, 37),
    ):
        done = dptrain_here("eval", finished.last_checkpoint, data, "--split", split, "--json", cwd=tmp_path)
        figures = json.loads(done.stdout)
        assert (figures["loss"], figures["accuracy"], figures["samples"]) == (loss, accuracy, samples)
    assert finished.validation_accuracy == last.validation_accuracy
    text = dptrain_here("eval", finished.last_checkpoint, data, "--split", "validation", cwd=tmp_path).stdout
    assert text.startswith(f"validation loss {last.validation_loss:.4f}, accuracy ")


def test_the_best_checkpoint_is_that_of_the_best_validation_accuracy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accuracies(monkeypatch, 0.2, 0.6, 0.4)
    finished = train(configuration(data, tmp_path / "run", epochs=3), Communicator())
    assert finished is not None
    assert (finished.best_step, finished.best_accuracy) == (2 * STEPS_PER_EPOCH, round(29 * 0.6) / 29)
    assert finished.best_checkpoint is not None
    progress = read_checkpoint(Path(finished.best_checkpoint)).state.progress
    assert (progress.step, progress.validation_accuracy) == (2 * STEPS_PER_EPOCH, finished.best_accuracy)
    progress = read_checkpoint(Path(finished.last_checkpoint)).state.progress
    assert (progress.best_step, progress.best_validation) == (2 * STEPS_PER_EPOCH, finished.best_accuracy)


@pytest.mark.slow
def test_a_run_stops_early_and_a_resumed_run_counts_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accuracies(monkeypatch, 0.2, 0.6, 0.6, 0.4, 0.4, 0.5, 0.7, 0.1, 0.2, 0.3, 0.4)
    config = configuration(data, tmp_path / "run", epochs=20, early_stop=2)
    memory = Memory()
    assert train(config, Communicator(), [memory]) is not None
    assert memory.steps[-1][0] == 4 * STEPS_PER_EPOCH
    assert memory.lines[-1] == (
        f"stopped early at step {4 * STEPS_PER_EPOCH}: the validation accuracy has not been better than at step "
        f"{2 * STEPS_PER_EPOCH} for 2 epochs"
    )
    memory = Memory()
    assert train(config, Communicator(), [memory]) is not None  # evaluates once more, and ends
    assert memory.steps == []
    memory = Memory()
    assert train(replace(config, early_stop=4), Communicator(), [memory]) is not None
    assert (memory.steps[0][0], memory.steps[-1][0]) == (4 * STEPS_PER_EPOCH + 1, 10 * STEPS_PER_EPOCH)


def test_a_run_stops_early_only_where_it_is_evaluated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accuracies(monkeypatch, 0.9, 0.2, 0.3, 0.4)
    config = configuration(data, tmp_path / "run", epochs=20, early_stop=1)
    train(replace(config, max_steps=3), Communicator())
    finished = train(config, Communicator())
    assert finished is not None
    assert finished.step == 2 * STEPS_PER_EPOCH
    assert finished.validation_accuracy is not None


@pytest.mark.slow
def test_early_stopping_is_the_same_on_any_number_of_ranks(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path / "one", epochs=20, early_stop=2, lr=0.0001)
    one, memory = run(config)
    assert 3 * STEPS_PER_EPOCH <= one["step"] < 20 * STEPS_PER_EPOCH
    ends = on_ranks(3, lambda communicator: train(replace(config, run_dir=str(tmp_path / "three")), communicator))
    assert ends[0] is not None
    assert (ends[0].step, ends[0].params_sha256) == (one["step"], one["params_sha256"])
    assert memory.lines[-1].startswith("stopped early")


def test_without_a_validation_split_early_stopping_is_refused(tmp_path: Path) -> None:
    plain = packed(tmp_path / "plain")
    with pytest.raises(UsageError, match="--early-stop needs a validation split, because the test split must not"):
        run(configuration(plain, tmp_path / "run", early_stop=1))
    assert not (tmp_path / "run").exists()
    finished, _ = run(configuration(plain, tmp_path / "run"))
    done = dptrain_here("eval", tmp_path / "run", plain, "--split", "validation", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"dptrain: error: --split validation: {plain} has the splits train, test\n",
    )
    assert finished["step"] == EPOCHS * STEPS_PER_EPOCH


def test_the_result_says_by_which_split_the_best_checkpoint_was_chosen(data: Path, tmp_path: Path) -> None:
    plain = packed(tmp_path / "plain")
    for folder, split in ((data, "validation"), (plain, "test")):
        words = ("--epochs", "1", "--model-options", "widths = [3]", "--batch-size", "16", "--no-report")
        done = dptrain_here("train", folder, *words, "--run-dir", tmp_path / f"run-{split}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"chosen on the {split} split: " in done.stdout
        assert ("validation accuracy" in done.stdout) == (split == "validation")
