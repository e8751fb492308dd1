"""How fast a run makes steps, and how long the rest of it takes."""

from __future__ import annotations

import time

from dptrain.training.events import RunFacts

MEAN_OF = 100  # steps; older ones lose their weight


class Pace:
    """Measures the steps of this process from its start at `step`. Times are wall times in seconds."""

    def __init__(self, run: RunFacts, step: int) -> None:
        self.run, self.first, self.step = run, step, step
        self.started = self._mark = time.perf_counter()
        self.step_seconds: float | None = None
        self.evaluation_seconds: float | None = None  # of the last evaluation
        self._evaluated = 0.0  # seconds of all evaluations
        self._measured = 0  # steps

    def step_finished(self, step: int) -> None:
        """A step is made. The first one is not measured, as it allocates memory."""
        now = time.perf_counter()
        if step > self.first + 1:
            self._measured += 1
            weight = 1 / min(self._measured, MEAN_OF)
            before = self.step_seconds or 0.0
            self.step_seconds = before + weight * (now - self._mark - before)
        self._mark, self.step = now, step

    def evaluation_finished(self, seconds: float) -> None:
        self.evaluation_seconds = seconds
        self._evaluated += seconds
        self._mark = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps that this process has made."""
        return self.step - self.first

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def rate(self) -> float | None:
        """Images/s over all steps so far, without evaluations; None if no step was made."""
        seconds = self.elapsed - self._evaluated
        return (self._samples(self.step) - self._samples(self.first)) / seconds if self.steps and seconds > 0 else None

    def _samples(self, step: int) -> int:
        """Images in the first `step` steps of the run; the last step of an epoch may have fewer."""
        epochs, rest = divmod(step, self.run.steps_per_epoch)
        return epochs * self.run.train_samples + rest * self.run.batch_size

    def epoch_left(self) -> float | None:
        """Seconds until the last step of this epoch, without its evaluation; None if no step was measured."""
        end = min(-(-self.step // self.run.steps_per_epoch) * self.run.steps_per_epoch, self.run.last_step)
        return None if self.step_seconds is None else (end - self.step) * self.step_seconds

    def left(self) -> float | None:
        """Seconds until the end of the run, with evaluations if one was measured; None if no step was measured."""
        if self.step_seconds is None:
            return None
        per_epoch, last = self.run.steps_per_epoch, self.run.last_step
        evaluations = -(-last // per_epoch) - self.step // per_epoch
        return (last - self.step) * self.step_seconds + evaluations * (self.evaluation_seconds or 0.0)
