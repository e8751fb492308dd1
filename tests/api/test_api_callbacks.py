"""Callbacks: when they are called, what they see, their figures, and how they end a run, on any number of ranks."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_runs import Trained, build
from mpi_runs import mpirun, own_mpi

from dptrain import Callback, DataSet, Run, Training, pack, train
from dptrain.errors import UsageError
from dptrain.training.events import EvaluationFinished, RunFinished, StepFinished
from dptrain.training.predictions import Predictions


class Recorder(Callback):
    """The names of the calls, and the parameters at each."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.parameters: list[Mapping[str, Any]] = []

    def on_start(self, training: Training) -> None:
        self._record("start", training)

    def on_step(self, training: Training, step: StepFinished) -> None:
        assert (training.step, training.epoch) == (step.step, step.epoch)
        self._record("step", training)

    def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
        assert training.epoch == evaluation.epoch
        self._record("evaluation", training)

    def on_finish(self, training: Training, finished: RunFinished) -> None:
        self._record("finish", training)

    def _record(self, name: str, training: Training) -> None:
        self.calls.append(name)
        self.parameters.append(training.parameters)


def test_callbacks_are_called_in_the_order_of_the_run(trained: Trained) -> None:
    recorder = Recorder()
    run = trained(callbacks=[recorder])
    epoch = [*["step"] * 7, "evaluation"]
    assert recorder.calls == ["start", *epoch, *epoch, "finish"]
    model = run.load()
    for name, values in recorder.parameters[-1].items():
        np.testing.assert_array_equal(values, model.parameters[name])
        assert not np.array_equal(values, recorder.parameters[0][name])  # copies, which no later step changes


def test_metrics_are_functions_of_the_predictions_of_all_samples(trained: Trained, api_data: Path) -> None:
    seen: list[Predictions] = []

    def accuracy(predictions: Predictions) -> float:
        seen.append(predictions)
        return float((predictions.labels == predictions.predicted).mean())

    run = trained(metrics={"my accuracy": accuracy})
    assert [line["value"] for line in run.metrics] == [line["test_accuracy"] for line in run.epochs]
    assert [(line["step"], line["epoch"], line["name"]) for line in run.metrics] == [
        (7, 1, "my accuracy"),
        (14, 2, "my accuracy"),
    ]
    assert len(seen[0]) == run.load().evaluate(api_data).samples


def test_a_metric_and_the_useful_commands_are_printed(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # `dptrain` is not found, and `python` may be another one
    trained(metrics={"half": lambda predictions: 0.5}, output="text", epochs=1)
    out = capfd.readouterr().out
    assert "\nstep 7, half 0.5\n" in out
    assert f"{shlex.quote(sys.executable)} -m dptrain inspect" in out
    assert "--model" not in out  # no command has the function


def test_metrics_use_the_validation_split_if_there_is_one(api_data: Path, tmp_path: Path) -> None:
    images, labels = DataSet(api_data).arrays()
    data = pack((images, labels), tmp_path / "set", layout="channels_first", shards=4, validation_fraction=0.3)
    sizes: list[int] = []

    def size(predictions: Predictions) -> float:
        sizes.append(len(predictions))
        return 0.0

    train(data, epochs=1, batch_size=16, output="none", run_dir=tmp_path / "run", metrics={"size": size})
    assert sizes == [len(data.arrays("validation")[1])]
    assert sizes != [len(data.arrays("test")[1])]


def test_a_stop_after_an_evaluation_ends_the_run_there(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    class Stop(Callback):
        def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
            if evaluation.epoch == 2:
                training.stop("two are enough")

    run = trained(epochs=5, callbacks=[Stop()], output="quiet")
    assert [line["step"] for line in run.epochs] == [7, 14]
    assert run.load().step == 14
    out, err = capfd.readouterr()
    assert err == "dptrain: stopped by a callback: two are enough\n"
    assert out.count("test accuracy") == 1


def test_a_stop_after_a_step_is_evaluated_and_saved(trained: Trained) -> None:
    class Stop(Callback):
        def on_step(self, training: Training, step: StepFinished) -> None:
            if step.step == 9:
                training.stop()

    run = trained(epochs=5, callbacks=[Stop()], report=True)
    assert [line["step"] for line in run.epochs] == [7, 10]
    assert run.load().step == 10
    assert "Confusion matrix: a row is a true class" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_an_error_in_a_callback_ends_the_run_and_loses_no_epoch(trained: Trained, tmp_path: Path) -> None:
    closed: list[str] = []

    class Fails(Callback):
        def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
            raise ZeroDivisionError("in a callback")

        def close(self) -> None:
            closed.append("closed")

    with pytest.raises(ZeroDivisionError, match="in a callback"):
        trained(callbacks=[Fails()])
    assert closed == ["closed"]
    assert Run(tmp_path / "run", model=build).load().step == 7
    assert trained().result["epoch"] == 2  # the folder is free, and the run can be resumed


def test_metrics_that_are_no_numbers_are_null_or_refused(trained: Trained, tmp_path: Path) -> None:
    run = trained(metrics={"ratio": lambda predictions: float("nan"), "odd\nname": lambda predictions: np.float32(1)})
    assert {line["name"]: line["value"] for line in run.metrics} == {"ratio": None, "odd\nname": 1.0}
    for metrics in ({"a": lambda predictions: None}, {5: len}, {"": len}, {"a": lambda predictions: 10**400}):
        with pytest.raises(UsageError, match="expected a number with a name"):
            trained(metrics=metrics, run_dir=tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("on_epoch_end", "did you mean 'on_evaluation'"),
        ("on_evalution", "did you mean 'on_evaluation'"),
        ("on_train_batch_end", "did you mean 'on_step'"),
        ("on_lunch", "known: on_evaluation, on_finish, on_start, on_step"),
    ],
)
def test_a_method_that_is_never_called_is_refused(name: str, advice: str, trained: Trained, tmp_path: Path) -> None:
    base = type("Base", (Callback,), {name: lambda self, *arguments: None})
    callback = type("Mine", (base,), {"on_the_way": True})()
    with pytest.raises(UsageError, match=rf"callbacks: Mine has a method {name}, which is never called; {advice}"):
        trained(callbacks=[callback])
    assert not (tmp_path / "run").exists()


def test_a_change_that_would_have_no_effect_on_the_run_is_an_error(trained: Trained) -> None:
    calls: list[str] = []

    class Changes(Callback):
        def on_start(self, training: Training) -> None:
            with pytest.raises(AttributeError, match="'lr'"):
                training.lr = 0.1  # type: ignore[attr-defined]
            with pytest.raises(ValueError, match="read-only"):
                training.parameters["conv1.weight"][:] = 0
            with pytest.raises(TypeError, match="does not support item assignment"):
                training.parameters["conv1.weight"] = np.zeros(1)  # type: ignore[index]
            calls.append("start")

    trained(callbacks=[Changes()], epochs=1)
    assert calls == ["start"]


def test_a_metric_cannot_change_what_the_report_shows(trained: Trained) -> None:
    with pytest.raises(ValueError, match="read-only"):
        trained(metrics={"sorted": lambda predictions: predictions.labels.sort() or 0.0})


def test_nothing_is_logged_after_the_run(trained: Trained) -> None:
    kept: list[Training] = []

    class Keeps(Callback):
        def on_start(self, training: Training) -> None:
            kept.append(training)

    trained(callbacks=[Keeps()])
    with pytest.raises(UsageError, match="the run has ended"):
        kept[0].log("late", 1.0)


def test_a_metric_gets_the_probabilities_of_all_classes(trained: Trained, api_data: Path) -> None:
    seen: list[Predictions] = []
    run = trained(metrics={"n": lambda predictions: len(seen.append(predictions) or predictions)})  # type: ignore[func-returns-value]
    images, _ = DataSet(api_data).arrays("test")
    np.testing.assert_allclose(seen[-1].probabilities, run.load().probabilities(images), atol=1e-6)


PROGRAM = """
import json, sys
import numpy as np
from dptrain import Callback, load, pack, train
from dptrain.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU
sys.path.insert(0, sys.argv[3])
from api_runs import build


class Ends(Callback):
    def on_step(self, training, step):
        if step.step == 9:
            if sys.argv[4] == "error":
                raise ValueError("the callback failed")
            training.stop()


from dptrain.parallel.mpi import launched_rank

packed = pack((np.zeros((40, 6, 7), np.uint8), np.arange(40) % 4), sys.argv[2] + "-set", shards=2)  # by rank 0 alone
assert len(packed.arrays("test")[1]) == 8
first = launched_rank() in (None, 0)
run = train(sys.argv[1], model=build, epochs=5, batch_size=16, run_dir=sys.argv[2], output="none", report=False,
            callbacks=[Ends()] if first else [], metrics={"samples": len} if first else None)
evaluation = load(sys.argv[2], model=build).evaluate(sys.argv[1], predictions=True)
print(json.dumps([run.result["step"], run.result["params_sha256"], run.metrics[-1]["value"], evaluation.loss]))
"""


@pytest.mark.mpi
def test_all_ranks_of_a_program_stop_together_with_the_same_bits(api_data: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    tests = str(Path(__file__).parents[1])
    lines: Counter[str] = Counter()
    for ranks in (1, 2):
        words = (program, api_data, tmp_path / f"run{ranks}", tests, "stop")
        done = mpirun(own_mpi(), ranks, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines.update(done.stdout.splitlines())
    ((line, count),) = lines.items()
    assert count == 3
    assert json.loads(line)[0] == 10


@pytest.mark.mpi
def test_a_call_on_all_ranks_within_another_is_refused(api_data: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    within = "load(sys.argv[2], model=build).evaluate(sys.argv[1])"
    program.write_text(PROGRAM.replace("training.stop()", within).replace("epochs=5", "epochs=2"))
    tests = str(Path(__file__).parents[1])
    alone = mpirun(own_mpi(), 1, program, api_data, tmp_path / "one", tests, "nested", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    done = mpirun(own_mpi(), 2, program, api_data, tmp_path / "two", tests, "nested", cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "UsageError: another function of dptrain runs on all ranks: call this after it has returned" in done.stderr


@pytest.mark.mpi
def test_ranks_that_evaluate_different_splits_are_reported(api_data: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("predictions=True", "['test', 'train'][launched_rank() or 0]"))
    words = (program, api_data, tmp_path / "run", str(Path(__file__).parents[1]), "stop")
    done = mpirun(own_mpi(), 2, *words, cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "has another evaluation than rank 0: split is 'train', not 'test'; call evaluate with" in done.stderr


@pytest.mark.mpi
def test_an_error_in_a_callback_of_rank_0_ends_all_ranks(api_data: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = (program, api_data, tmp_path / "run", str(Path(__file__).parents[1]), "error")
    done = mpirun(own_mpi(), 2, *words, cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "ValueError: the callback failed" in done.stderr
    assert Run(tmp_path / "run", model=build).result["step"] == 7
