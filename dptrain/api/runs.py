"""Training runs: started from a program, and read back from their folders."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dptrain.api.callbacks import Callback, CallbackReporter, Metric, Training
from dptrain.api.model import Model, ModelFunction, architecture_of, data_set_path, load
from dptrain.api.packing import PathLike
from dptrain.api.process import all_ranks, one_blas_thread
from dptrain.checkpoint.folder import RunFolder
from dptrain.config.files import read_toml
from dptrain.config.train import TrainConfig
from dptrain.config.values import from_python
from dptrain.errors import UsageError
from dptrain.health.interruption import Interruption, SignalInterruption
from dptrain.parallel.communicator import together
from dptrain.report import REPORTERS, output_reporter
from dptrain.report.optional import note_to, optional_reporters
from dptrain.report.page.facts import PageOptions
from dptrain.report.page.history import History, read_history
from dptrain.report.page.write import write_comparison, write_report
from dptrain.system.paths import absolute_path
from dptrain.system.text import shown
from dptrain.training import loop, run
from dptrain.training.architecture import Architecture
from dptrain.training.events import Reporter
from dptrain.training.model_source import model_in_toml
from dptrain.training.reporting import RunReport

Output = Literal["text", "quiet", "json", "none"]


class Run:
    """A run folder. Its figures are read from metrics.jsonl when one is first used; DataError if there is none."""

    def __init__(self, folder: PathLike, model: str | ModelFunction = "") -> None:
        self.folder, self._model = absolute_path(folder), model

    @cached_property
    def _history(self) -> History:
        return read_history(self.folder / "metrics.jsonl")

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        last = self._history.last
        result = f"step {last['step']}, test accuracy {100 * last['test_accuracy']:.2f} %" if last else "not evaluated"
        return f"<Run {shown(self.folder)}: {result}>"

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The figures of each evaluation: the events "epoch" of metrics.jsonl."""
        return self._history.epochs

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The figures of each logged step: the events "step" of metrics.jsonl."""
        return self._history.steps

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What callbacks and metrics have logged: the events "metric" of metrics.jsonl."""
        return self._history.metrics

    @property
    def result(self) -> dict[str, Any]:
        """The figures of the last evaluation; empty before the first one."""
        return self._history.last

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, by key."""
        return read_toml(self.folder / "config.toml")

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints: the best, then those of steps from the oldest to the newest."""
        return RunFolder(self.folder).candidates()

    def load(self, which: Literal["last", "best"] = "last") -> Model:
        """The network of the newest checkpoint, or of the best one: see `load`."""
        if which not in ("last", "best"):
            raise UsageError(f"found {which!r}, expected 'last' or 'best'")
        return load(self.folder if which == "last" else self.folder / "checkpoints" / "best.h5", self._model)

    def report(self, output: PathLike | None = None, *, data: PathLike = "") -> Path:
        """Write the HTML page of the run, by default report.html in its folder; returns its path.

        `data` is the data set, if it has moved.
        """
        path = None if output is None else absolute_path(output)
        with one_blas_thread:
            return write_report(self.folder, path, PageOptions(os.fspath(data), architecture_of(self._model)))


def compare(runs: Sequence[PathLike], output: PathLike = "comparison.html") -> Path:
    """Write an HTML page that compares runs; returns its path."""
    if isinstance(runs, str | os.PathLike) or not runs:
        raise UsageError(f"found {shown(repr(runs), 80)}, expected a list of runs")
    return write_comparison([absolute_path(one) for one in runs], absolute_path(output))


def train(
    data: PathLike | None = None,
    *,
    model: str | ModelFunction = "",
    callbacks: Sequence[Callback] = (),
    metrics: Mapping[str, Metric] | None = None,
    output: Output = "text",
    handle_signals: bool = False,
    **configuration: Any,
) -> Run:
    """Train a network on a packed data set; returns the run when it is complete.

    `model` is the name of a built-in network, FILE.py:FUNCTION, or a function that returns layers. Its arguments are
    the input shape (C, H, W), the number of classes, and `model_options`. The default is that of the recipe or TOML
    file, else the convnet. `configuration` are the flags of `dptrain train` with _ for -, such as `epochs=3` or
    `run_dir="runs/one"`. Without `data`, it is that of the TOML file, `config`. A call with the `run_dir` of an earlier
    run resumes that run.

    `callbacks` are called on rank 0. `metrics` are functions of the predictions for all samples of the validation split
    (without one, of the test split): their values are logged after each evaluation. Only those of rank 0 count.
    `output` is what is printed: text, or only warnings and the result ("quiet"), JSON, or nothing.

    In a program that mpirun has started, all ranks call this, with the same arguments.

    With `handle_signals`, in the main thread only, SIGTERM or Ctrl-C saves a checkpoint after the current step and
    raises PreemptedError; a second one ends the process at once. Without it, Ctrl-C raises KeyboardInterrupt at once,
    and earlier checkpoints are kept. Raises a DptrainError.
    """
    with all_ranks() as (communicator, connection), ExitStack() as stack:
        with together(communicator):
            if handle_signals and threading.current_thread() is not threading.main_thread():
                raise UsageError("handle_signals: Python handles signals in the main thread only, this is another")
            architecture = architecture_of(model)
            given = architecture if isinstance(architecture, Architecture) else None
            name = architecture.model if isinstance(architecture, Architecture) else architecture
            config = _configuration(data, name, configuration)
            reporter = CallbackReporter(callbacks, metrics)
            printing: list[Reporter] = [*(kind() for kind in REPORTERS), *_output_reporters(output)]
            reporters = [*printing, reporter, *optional_reporters(config.report_to, note_to(printing))]
        all_predictions = communicator.broadcast(reporter.has_callbacks)
        interruption = Interruption()
        if handle_signals:
            interruption = signals = SignalInterruption(communicator.end_job)
            stack.callback(signals.close)
        for one in reporters:
            stack.enter_context(closing(one))
        report = RunReport(config, reporters, connection)
        begun = run.Run(config, report, given, all_predictions=all_predictions)
        reporter.training = Training(begun, interruption)
        loop.complete(begun, communicator, interruption)
        stack.close()
        begun.session.communicator.broadcast(None)  # other ranks wait until rank 0 has written everything
        return Run(begun.folder.path, model if given else config.model if ":" in config.model else "")


def _configuration(data: PathLike | None, model: str, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration with absolute paths, as the working directory may change in a callback."""
    values = {**values, **({"model": model} if model else {})}
    if values.get("run_dir"):
        values["run_dir"] = absolute_path(values["run_dir"])
    saved = _saved(values.pop("config", None))
    values["data"] = data_set_path(saved.get("data") if data is None else data)
    return from_python(values, saved)


def _saved(config: object) -> dict[str, Any]:
    """The values of a TOML file, or of a run by its folder."""
    if config is None or config == "":
        return {}
    if not isinstance(config, str | os.PathLike):
        raise UsageError(
            f"config: found {shown(repr(config), 80)}, expected a TOML file or a run; pass values as arguments: "
            "train(data, epochs=3), or train(data, **values)"
        )
    path = absolute_path(config)
    if path.is_dir():
        path /= "config.toml"
    saved = read_toml(path)
    if "model" in saved:
        saved["model"] = model_in_toml(path, saved["model"])
    return saved


def _output_reporters(output: Output) -> list[Reporter]:
    if output not in ("text", "quiet", "json", "none"):
        raise UsageError(f"output is {output!r}, expected 'text', 'quiet', 'json' or 'none'")
    return [] if output == "none" else [output_reporter(quiet=output == "quiet", log_json=output == "json")]
