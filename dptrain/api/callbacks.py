"""Code of a user that runs during training, on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dptrain.arrays.memory import Array
from dptrain.checkpoint.state import BUFFERS, PARAMETERS
from dptrain.errors import UsageError
from dptrain.health.interruption import Interruption
from dptrain.training.events import (
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


class Training:
    """The run that a callback belongs to, on rank 0."""

    def __init__(self, run: Run, interruption: Interruption) -> None:
        self._run, self._interruption = run, interruption

    @property
    def run_dir(self) -> str:
        """The path of the run folder."""
        return str(self._run.folder.path)

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

    def parameters(self) -> dict[str, Array]:
        """Copies of the current parameters by name, such as "conv1.weight"."""
        return self._copies(PARAMETERS)

    def buffers(self) -> dict[str, Array]:
        """Copies of the current buffers by name, such as "norm1.mean"."""
        return self._copies(BUFFERS)

    def _copies(self, vector: str) -> dict[str, Array]:
        return self._run.session.take_step.layouts[vector].views(self._run.state.vectors[vector].copy())

    def log(self, name: str, value: float) -> None:
        """Report a figure: it is printed, written to metrics.jsonl, and drawn by TensorBoard and MLflow."""
        self._run.report.emit(MetricLogged(self.step, self.epoch, name, float(value)))

    def stop(self, reason: str = "") -> None:
        """End the run: it is evaluated, saved and reported.

        After an evaluation it ends at once, after a step with the next step: only then all ranks know it.
        """
        self._run.report.note(f"stopped by a callback{f': {reason}' if reason else ''}")
        self._interruption.finish = True


class Callback:
    """Base class of callbacks: override the methods that you need. An exception in one of them ends the run."""

    def on_start(self, training: Training) -> None:
        """Called before the first step of this process."""

    def on_step(self, training: Training, step: StepFinished) -> None:
        """Called after each step. `step` has loss, accuracy and lr of the global batch."""

    def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
        """Called after each evaluation, so after each epoch.

        `evaluation.predictions` are those of the test split; `evaluation.validation_predictions` are those of the
        validation split, or None without one.
        """

    def on_finish(self, training: Training, finished: RunFinished) -> None:
        """Called at the end of a run that is complete and saved."""


class Metrics(Callback):
    """Logs a user's figures after each evaluation: of the validation split if there is one, else of the test split."""

    def __init__(self, functions: Mapping[str, Metric]) -> None:
        self._functions = functions

    def on_evaluation(self, training: Training, evaluation: EvaluationFinished) -> None:
        predictions = evaluation.validation_predictions or evaluation.predictions
        assert predictions is not None
        for name, function in self._functions.items():
            training.log(name, function(predictions))


class CallbackReporter:
    """Passes the events of a run to callbacks."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        for one in callbacks:
            if not isinstance(one, Callback):
                raise UsageError(f"callbacks: found {one!r}, expected objects of a class that extends dptrain.Callback")
        self._callbacks = callbacks
        self.training: Training | None = None

    def handle(self, event: Event) -> None:
        """Call the method for an event."""
        assert self.training is not None
        for callback in self._callbacks:
            match event:
                case RunStarted() | RanksLost():
                    callback.on_start(self.training)
                case StepFinished():
                    callback.on_step(self.training, event)
                case EvaluationFinished():
                    callback.on_evaluation(self.training, event)
                case RunFinished():
                    callback.on_finish(self.training, event)

    def close(self) -> None:
        """Nothing is open."""
