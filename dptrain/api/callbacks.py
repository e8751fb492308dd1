"""Code of a user that runs during training, on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dptrain.api.tensors import NamedTensors
from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array
from dptrain.errors import UsageError
from dptrain.health.interruption import Interruption
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown
from dptrain.training.events import (
    CheckpointStarted,
    EvaluationFinished,
    Event,
    MetricLogged,
    RanksLost,
    RunFinished,
    RunStarted,
    StepFinished,
)
from dptrain.training.predictions import Predictions
from dptrain.training.run import Run

Metric = Callable[[Predictions], float]

# Our methods, and what other programs call them.
SYNONYMS = {
    "on_start": "on-train-begin on-train-start on-fit-start",
    "on_step": "on-batch-end on-train-batch-end on-step-end",
    "on_evaluation": "on-epoch-end on-train-epoch-end on-validation-epoch-end on-validation-end on-test-end",
    "on_finish": "on-train-end on-fit-end",
}
EXPLANATIONS = {word: f"did you mean {name!r}?" for name, words in SYNONYMS.items() for word in words.split()}


class Training(NamedTensors):
    """The run that a callback belongs to, on rank 0; its tensors are the current ones, read-only."""

    __slots__ = ("_interruption", "_run")

    def __init__(self, run: Run, interruption: Interruption) -> None:
        self._run, self._interruption = run, interruption

    @property
    def run_dir(self) -> str:
        """The path of the run folder."""
        return str(self._run.folder.path)

    @property
    def ranks(self) -> int:
        """The number of ranks that share the work."""
        return self._run.session.communicator.size

    @property
    def step(self) -> int:
        """The number of steps made."""
        return self._run.state.step

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 1."""
        return max(0, self.step - 1) // self._run.session.origin.steps_per_epoch + 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self._run.session.manifest.classes

    def _vector(self, name: str) -> tuple[Layout, Array]:
        return self._run.session.take_step.layouts[name], self._run.state.vectors[name]

    def log(self, name: str, value: float) -> None:
        """Report a metric: it is printed and written to metrics.jsonl, and with report_to to TensorBoard or MLflow.

        UsageError unless the name is text and the value a number, and after the end of the run.
        """
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if not isinstance(name, str) or not name or number is None:
            raise UsageError(
                f"metric {shown(repr(name), 80)} is {shown(repr(value), 80)}, expected a number with a name"
            )
        self._run.report.emit(MetricLogged(self.step, self.epoch, name, number))

    def stop(self, reason: str = "") -> None:
        """End the run: it is evaluated, saved and reported.

        Called in on_evaluation, the run ends after that evaluation. Called in on_step, it ends after the next step: the
        ranks exchange the request with a step. A later call of `train` with the same run_dir continues the run.
        """
        if not self._interruption.finish:
            self._run.report.note(f"stopped by a callback{f': {reason}' if reason else ''}")
        self._interruption.finish = True


class Callback:
    """Base class of callbacks: override the methods that you need. An exception in one of them ends the run."""

    def on_start(self, training: Training) -> None:
        """Called before the first step of this process, and again after ranks were lost."""

    def on_step(self, training: Training, step: StepFinished) -> None:
        """Called after each step. `step` has loss, accuracy and lr of the global batch."""

    def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
        """Called after each evaluation, so after each epoch, when its checkpoint is being written.

        `evaluation.predictions` are those of the test split; `evaluation.validation_predictions` are those of the
        validation split, or None without one. `evaluation.repeated`: an earlier process has reported it already.
        """

    def on_finish(self, training: Training, finished: RunFinished) -> None:
        """Called at the end of a run that is complete and saved."""

    def close(self) -> None:
        """Called when the run ends, also after an error."""


class Metrics(Callback):
    """Logs metrics after each evaluation: of the validation split if there is one, else of the test split."""

    def __init__(self, functions: Mapping[str, Metric]) -> None:
        if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
            raise UsageError(
                f"metrics: found {shown(repr(functions), 80)}, expected functions by name: {{name: function}}"
            )
        self._functions = functions

    def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
        predictions = evaluation.validation_predictions or evaluation.predictions
        assert predictions is not None
        for name, function in self._functions.items():
            training.log(name, function(predictions))


def check_methods(callback: Callback) -> None:
    """UsageError for a method that nothing calls: its name begins with on_, and the base class has none of it."""
    kind = type(callback)
    for name in dir(kind):
        if name.startswith("on_") and not hasattr(Callback, name) and callable(getattr(kind, name)):
            near = did_you_mean(name, SYNONYMS, explanations=EXPLANATIONS)
            found = shown(f"{kind.__name__} has a method {name}", 120)
            raise UsageError(f"callbacks: {found}, which is never called; {near}")


class CallbackReporter:
    """Passes the events of a run to callbacks."""

    def __init__(self, callbacks: Sequence[Callback], metrics: Mapping[str, Metric] | None = None) -> None:
        if not isinstance(callbacks, Sequence) or not all(isinstance(one, Callback) for one in callbacks):
            found = shown(repr(callbacks), 80)
            raise UsageError(f"callbacks: found {found}, expected a list of objects whose class extends Callback")
        for one in callbacks:
            check_methods(one)
        self._callbacks = [*callbacks, *([] if metrics is None else [Metrics(metrics)])]
        self._evaluation: EvaluationFinished | None = None  # whose checkpoint is not written yet
        self.training: Training | None = None

    @property
    def has_callbacks(self) -> bool:
        return bool(self._callbacks)

    def handle(self, event: Event) -> None:
        """Call the method for an event. An evaluation waits for its checkpoint, so that no error can lose it."""
        assert self.training is not None
        if isinstance(event, EvaluationFinished):
            self._evaluation = event
        elif isinstance(event, CheckpointStarted | RunFinished) and self._evaluation is not None:
            evaluation, self._evaluation = self._evaluation, None
            for callback in self._callbacks:
                callback.on_evaluation(self.training, evaluation)
        for callback in self._callbacks:
            match event:
                case RunStarted() | RanksLost():
                    callback.on_start(self.training)
                case StepFinished():
                    callback.on_step(self.training, event)
                case RunFinished():
                    callback.on_finish(self.training, event)

    def close(self) -> None:
        """Close the callbacks."""
        for callback in self._callbacks:
            callback.close()
