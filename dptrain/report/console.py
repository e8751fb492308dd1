"""Progress for people: a bar on a terminal, plain lines elsewhere.

A notebook would save every frame of a bar, so there each epoch prints one line. Under mpirun a rank cannot detect a
terminal: Open MPI gives it a pseudo-terminal even if mpirun's output goes to a file. The launcher can, and sets
DPTRAIN_PROGRESS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dptrain
from dptrain.parallel.mpi import launched_size
from dptrain.system.notebook import in_notebook
from dptrain.system.text import shown
from dptrain.training import events

PROGRESS_VARIABLE = "DPTRAIN_PROGRESS"  # "bar" or "lines"


def on_terminal() -> bool:
    """Whether to show a bar on standard output."""
    wanted = os.environ.get(PROGRESS_VARIABLE)
    return wanted == "bar" if wanted else sys.stdout.isatty() and launched_size() is None and not in_notebook()


class Console:
    """Lines on standard output, and on a terminal a bar over the steps of the run."""

    def __init__(self) -> None:
        self._only_epochs = in_notebook()
        self._bar: Any = None
        self._task: Any = None
        self._rate = ""
        self._epochs = 0

    def handle(self, event: events.Event) -> None:
        match event:
            case events.Note(text):
                self.say(text)
            case events.RunStarted(run):
                self._start_run(event)
                self._start_bar(run, event.step)
            case events.RanksLost(run):
                self.close()
                names = ", ".join(map(str, event.lost))
                self.say(
                    f"{'rank' if len(event.lost) == 1 else 'ranks'} {names} died: {_count(run.ranks, 'rank')} of "
                    f"{_count(run.threads, 'thread')} continue from step {event.step} after "
                    f"{event.recovery_seconds:.2f} s"
                )
                self._start_bar(run, event.step)
            case events.StepFinished():
                self._step(event)
            case events.EvaluationStarted():
                if self._bar is not None:
                    self._bar.update(self._task, description=f"epoch {event.epoch}/{self._epochs}  evaluating")
            case events.EvaluationFinished():
                self.say(
                    f"epoch {event.epoch}/{self._epochs} (step {event.step})  training loss {event.loss:.4f}, accuracy "
                    f"{100 * event.accuracy:.2f} %  test loss {event.test_loss:.4f}, accuracy "
                    f"{100 * event.test_accuracy:.2f} %"
                )
            case events.RunFinished():
                self._finish(event)

    def _start_run(self, event: events.RunStarted) -> None:
        run = event.run
        each = " each" if run.ranks > 1 else ""
        self.say(f"dptrain {dptrain.__version__}: {run.connection}, {_count(run.threads, 'shard')} at a time{each}")
        self.say(
            f"data   {run.data}: {run.train_samples:,} training and {run.test_samples:,} test images "
            f"{'x'.join(map(str, run.image_shape))}, {run.classes} classes, {run.shards} shards"
        )
        self.say(
            f"model  {run.model}: {run.parameters:,} parameters; {run.steps_per_epoch} steps an epoch, "
            f"{run.last_step} in all"
        )
        self.say(
            f"run    {run.run_dir}" + f", from {event.resumed_from} (step {event.step})" * bool(event.resumed_from)
        )

    def _step(self, event: events.StepFinished) -> None:
        if event.logged:
            self._rate = f"{event.images_per_second:,.0f} images/s"
        epoch = f"epoch {event.epoch}/{self._epochs}"
        if self._bar is not None:
            brief = f"{epoch}  loss {event.loss:.3f}  {self._rate}"
            self._bar.update(self._task, completed=event.step, description=brief)
        elif event.logged and not self._only_epochs:
            self.say(
                f"step {event.step}  {epoch}  loss {event.loss:.4f}  batch accuracy {100 * event.accuracy:.2f} %  "
                f"lr {event.lr:.5f}  {self._rate}"
            )

    def _finish(self, event: events.RunFinished) -> None:
        self.close()
        right = f"{event.test_correct:,} of {event.test_samples:,}"
        self.say(f"test accuracy {100 * event.test_accuracy:.2f} % ({right})")
        self.say(f"last checkpoint {event.last_checkpoint}")
        if event.best_checkpoint is not None and event.best_accuracy is not None:
            accuracy = f"test accuracy {100 * event.best_accuracy:.2f} %, step {event.best_step:,}"
            self.say(f"best checkpoint {event.best_checkpoint} ({accuracy})")
        self.say(f"metrics         {Path(event.run_dir) / 'metrics.jsonl'}")
        self.say(f"params_sha256   {event.params_sha256}")

    def _start_bar(self, run: events.RunFacts, step: int) -> None:
        """On a terminal, show a bar; rich is imported only there, as that takes a tenth of a second."""
        self._epochs = run.epochs
        if on_terminal():
            self._bar = _make_bar()
            self._task = self._bar.add_task("", completed=step, total=run.last_step)
            self._bar.start()

    def say(self, line: str) -> None:
        """Print a line; names in it may come from files, so it is escaped (`shown`)."""
        line = shown(line)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _make_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        """Adds an empty last line, because Open MPI's mpirun forwards only whole lines."""

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            yield ""

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=10), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.description}"))
