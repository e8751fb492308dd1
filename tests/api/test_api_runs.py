"""dptrain.train and dptrain.Run: the same run as on the command line, resumed, stopped and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_runs import Times, Trained, build, build_times
from command_runs import dptrain_here
from threadpoolctl import threadpool_info, threadpool_limits

from dptrain import Callback, DataSet, Run, Training, compare, load, train
from dptrain.api.process import one_blas_thread
from dptrain.errors import CheckpointError, DataError, ModelError, PreemptedError, UsageError
from dptrain.training.events import StepFinished


def test_a_program_and_the_command_line_give_the_same_bits(api_data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from dptrain.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU\n\n\ndef build(shape, classes, width=4):\n"
        "    return [Conv2d(width, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(classes)]\n"
    )
    flags = ["--epochs", "1", "--batch-size", "16", "--model-options", "width = 6", "--no-report"]
    words = [str(api_data), *flags, "--model", str(tmp_path / "net.py:build"), "--run-dir", str(tmp_path / "command")]
    assert dptrain_here("train", *words, cwd=tmp_path).returncode == 0
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "model_options": {"width": 6}, "report": False}
    run = train(DataSet(api_data), model=build, run_dir=tmp_path / "program", output="none", **options)
    assert run.result["params_sha256"] == Run(tmp_path / "command").result["params_sha256"]


PROGRAM = """
import json, sys
import numpy as np
from threadpoolctl import threadpool_info

def threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

values = np.ones((300, 300)) @ np.ones((300, 300))
before = threads()
from dptrain import train
seen = []
from dptrain import Callback

class Look(Callback):
    def on_step(self, training, step):
        seen.append(threads())

run = train(sys.argv[1], epochs=1, batch_size=16, run_dir=sys.argv[2], callbacks=[Look()], output="none")
print(json.dumps([before, seen[0], threads(), run.result["params_sha256"]]))
"""


@pytest.mark.slow
def test_blas_threads_are_limited_during_the_run_and_given_back(api_data: Path, tmp_path: Path) -> None:
    """The bits are those of a process that has limited them before NumPy was imported."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment["OPENBLAS_NUM_THREADS"] = "2"
    command = [sys.executable, "-c", PROGRAM, str(api_data), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    before, during, after, found = json.loads(done.stdout)
    assert before == after == [2]
    assert set(during) == {1}
    words = [str(api_data), "--epochs", "1", "--batch-size", "16", "--run-dir", str(tmp_path / "command")]
    assert dptrain_here("train", *words, cwd=tmp_path).returncode == 0
    assert found == Run(tmp_path / "command").result["params_sha256"]


def test_a_call_with_the_same_folder_resumes_the_run(trained: Trained, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_step(self, training: Training, step: StepFinished) -> None:
            if step.step == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(callbacks=[Interrupt()])
    steps: list[int] = []

    class Count(Callback):
        def on_start(self, training: Training) -> None:
            steps.append(training.step)

    resumed = trained(callbacks=[Count()])
    assert steps == [7]  # the checkpoint of the first epoch
    undisturbed = trained(run_dir=tmp_path / "undisturbed")
    assert resumed.result["params_sha256"] == undisturbed.result["params_sha256"]
    assert [line["epoch"] for line in resumed.epochs] == [1, 2]


def test_a_changed_function_is_found_when_the_run_is_resumed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(max_steps=3)
    with pytest.raises(CheckpointError, match="another architecture"):
        trained(model=build_times)
    trained(model=build_times, run_dir=tmp_path / "other", max_steps=3)
    monkeypatch.setattr(Times, "factor", 0.5)
    with pytest.raises(CheckpointError, match="build_times computes something else than when"):
        trained(model=build_times, run_dir=tmp_path / "other")


@pytest.mark.slow
def test_interrupts_raise_at_once_and_leave_no_process(api_data: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom dptrain import Callback, train\n"
        "class Ready(Callback):\n    def on_step(self, training, step):\n        print(step.step, flush=True)\n"
        "try:\n    train(sys.argv[1], epochs=10000, batch_size=16, run_dir=sys.argv[2], threads=2, output='none',"
        " callbacks=[Ready()])\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
        "import multiprocessing\nprint(multiprocessing.active_children())\n"
    )
    command = [sys.executable, "-c", program, str(api_data), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20:
            pass
        os.killpg(process.pid, signal.SIGINT)  # like Ctrl-C in a terminal
        out = process.communicate(timeout=20)[0].splitlines()
    assert out[-2:] == ["interrupted", "[]"]
    assert process.returncode == 0
    assert len(Run(tmp_path / "run").checkpoints) >= 2


def test_signals_are_handled_only_if_that_is_requested(trained: Trained, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found: list[Any] = []

    class Interrupt(Callback):
        def on_step(self, training: Training, step: StepFinished) -> None:
            found.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
            if step.step == 3 and len(found) > 14:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.sigtimedwait([], 0.05)  # the thread that reads signals runs meanwhile

    trained(callbacks=[Interrupt()])
    assert found == [handlers] * 14
    with pytest.raises(PreemptedError, match="SIGTERM"):
        trained(callbacks=[Interrupt()], handle_signals=True, run_dir=tmp_path / "signals")
    assert handlers not in found[14:]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in Run(tmp_path / "signals").checkpoints] == ["step-00000004.h5"]


def test_signals_cannot_be_handled_in_another_thread(trained: Trained) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            trained(handle_signals=True)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread only" in str(errors[0])


def test_wrong_arguments_are_explained(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown key 'epoch'.*epochs"):
        trained(epoch=3)
    with pytest.raises(UsageError, match=r"^epochs is 'three', expected a whole number"):
        trained(epochs="three")
    with pytest.raises(UsageError, match="output is 'loud', expected 'text'"):
        trained(output="loud")
    for wrong in ([print], Callback(), None):
        with pytest.raises(UsageError, match="expected a list of objects whose class extends Callback"):
            trained(callbacks=wrong)
    for metrics in ([len], {"a": 3}):
        with pytest.raises(UsageError, match=r"expected functions by name: \{name: function\}"):
            trained(metrics=metrics)
    with pytest.raises(UsageError, match="model: found None, expected a name"):
        trained(model=None)
    with pytest.raises(UsageError, match="expected a DataSet or the folder of a packed data set"):
        train((1, 2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected a list of runs"):
        compare([])
    with pytest.raises(ModelError, match=r"build\(\) got an unexpected keyword argument 'depth'"):
        trained(model_options={"depth": 3})
    with pytest.raises(UsageError, match=r"config: found {'epochs': 3}, .* arguments: train\(data, epochs=3\)"):
        trained(config={"epochs": 3})
    with pytest.raises(UsageError, match="found 3, expected the path"):
        trained(run_dir=3)
    with pytest.raises(UsageError, match="data: found None, expected a DataSet"):
        train()
    assert not (tmp_path / "run").exists()


def test_the_configuration_of_a_run_begins_another(trained: Trained, tmp_path: Path) -> None:
    run = trained(epochs=1, optimizer="adamw")
    again = train(**{**run.config, "model": build, "run_dir": tmp_path / "again", "output": "none"})
    assert again.config == run.config
    for number, config in enumerate((run, run.folder, run.folder / "config.toml")):  # `data` is in the file
        other = train(config=config, model=build, run_dir=tmp_path / str(number), output="none")
        assert other.config == run.config
        assert other.result["params_sha256"] == again.result["params_sha256"] == run.result["params_sha256"]


def test_the_model_of_a_recipe_or_file_is_trained_unless_another_is_given(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from api_runs import build\n")
    (tmp_path / "a.toml").write_text("model = 'net.py:build'\n")
    run = trained(config=tmp_path / "a.toml", model="", epochs=1)
    assert run.config["model"] == "model/net.py:build"
    assert run.load().step == 7
    other = trained(config=tmp_path / "a.toml", model="linear", epochs=1, run_dir=tmp_path / "other")
    assert other.config["model"] == "linear"
    recipe = trained(recipe="resnet20", model="", crop="none", max_steps=1, run_dir=tmp_path / "recipe")
    assert recipe.config["model"] == "resnet20"


def test_numbers_of_numpy_paths_and_lists_are_values(trained: Trained, tmp_path: Path) -> None:
    values = {"lr": np.logspace(-2, -1, 2)[0], "epochs": np.int64(1), "flip": np.True_}
    run = trained(**values, model_options={"width": np.int32(3)}, freeze=["conv1", "linear1.bias"])
    assert (run.config["lr"], run.config["epochs"], run.config["flip"]) == (0.01, 1, True)
    assert (run.config["model_options"], run.config["freeze"]) == ({"width": 3}, "conv1,linear1.bias")
    other = trained(init_from=run, run_dir=tmp_path / "other", epochs=1, model_options={"width": 3})
    assert other.config["init_from"] == str(run.folder)
    shipped = trained(init_from=load(), model="convnet", run_dir=tmp_path / "shipped", epochs=1)
    assert shipped.config["init_from"] == str(load().path)


def test_the_working_directory_may_change_during_a_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Moves(Callback):
        def on_start(self, training: Training) -> None:
            monkeypatch.chdir("/")

    run = trained(run_dir="relative", callbacks=[Moves()])
    assert run.folder == tmp_path / "relative"
    assert run.load().step == 14


def test_a_limit_of_threads_ends_with_the_last_of_several_users() -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        outer, inner = threading.Event(), threading.Event()

        def other() -> None:
            with one_blas_thread:
                inner.set()
                outer.wait()

        with one_blas_thread:
            thread = threading.Thread(target=other)
            thread.start()
            inner.wait()
        assert threads() == {1}
        outer.set()
        thread.join()
        assert threads() == {2}


def test_recipes_files_and_short_flags_are_as_on_the_command_line(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("lr = 0.01\nepochs = 1\n")
    run = trained(config=tmp_path / "a.toml", lr=0.02, augment="zero", epochs=1)
    assert (run.config["lr"], run.config["epochs"], run.config["crop"], run.config["flip"]) == (0.02, 1, "zero", True)
    with pytest.raises(UsageError, match="there is no recipe 'airbench'"):
        trained(recipe="airbench")


@pytest.mark.parametrize("output", ["none", "json", "quiet", "text"])
def test_the_output_is_what_is_requested(output: Any, trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    trained(output=output, epochs=1)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    expected = {"none": len(lines) == 0, "quiet": len(lines) == 1, "text": "epoch 1/1" in out, "json": "{" in out}
    assert expected[output]
    assert err == ""
    if output == "json":
        assert [json.loads(line)["event"] for line in lines] == ["start", *["step"] * 7, "epoch"]


def test_a_run_folder_is_read_back(trained: Trained, api_data: Path, tmp_path: Path) -> None:
    trained(keep_best=2)
    run = Run(tmp_path / "run", model=build)
    assert [line["step"] for line in run.steps] == [*range(1, 15)]
    assert [line["epoch"] for line in run.epochs] == [1, 2]
    assert run.result == run.epochs[-1]
    assert run.config["batch_size"] == 16
    best = max(run.epochs, key=lambda line: line["test_accuracy"])
    assert run.load("best").step == best["step"]
    assert run.load().step == 14
    assert f"test accuracy {100 * run.result['test_accuracy']:.2f} %" in repr(run)
    with pytest.raises(DataError, match="give the folder of a run"):
        _ = Run(tmp_path / "missing").epochs
    with pytest.raises(UsageError, match="expected 'last' or 'best'"):
        run.load("first")  # type: ignore[arg-type]


def test_the_report_of_a_function_has_its_predictions(trained: Trained, tmp_path: Path) -> None:
    run = trained()
    page = run.report()
    assert page == tmp_path / "run" / "report.html"
    assert "Confusion matrix: a row is a true class" in page.read_text(encoding="utf-8")
    other = trained(run_dir=tmp_path / "other")
    assert "other" in compare([run, other], tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_best_checkpoints_are_kept(trained: Trained) -> None:
    run = trained(epochs=9, keep_best=3, report=False)
    accuracies = {line["step"]: line["test_accuracy"] for line in run.epochs}
    best_first = sorted(accuracies, key=lambda step: (-accuracies[step], step))
    kept = {int(path.stem.removeprefix("step-")) for path in run.checkpoints if path.stem != "best"}
    assert kept == {*best_first[:3], *sorted(accuracies)[-3:]}
    assert run.load("best").step == best_first[0] < run.load().step
