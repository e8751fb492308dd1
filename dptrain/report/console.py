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
from dptrain.system.launched import launched_size
from dptrain.system.streams import in_notebook
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
        self._rate = ""
        self._epochs = 0

    def handle(self, event: events.Event) -> None:
        match event:
            case events.Note(text):
                self._print(text)
            case events.RunStarted(run, step, resumed_from):
                self._print_facts(run)
                origin = f", from {resumed_from} (step {step})" if resumed_from else ""
                self._print(f"run    {run.run_dir}{origin}")
                self._start_bar(run, step)
            case events.RanksLost(run, step, lost, seconds):
                self.close()
                self._print(
                    f"rank {', '.join(map(str, lost))} died: {_count(run.ranks, 'rank')} of "
                    f"{_count(run.threads, 'thread')} continue from step {step} after {seconds:.2f} s"
                )
                self._start_bar(run, step)
            case events.StepFinished():
                self._show_step(event)
            case events.EvaluationStarted(_, epoch):
                self._update_bar(description=f"epoch {epoch}/{self._epochs}  evaluating")
            case events.EvaluationFinished():
                training = f"training loss {event.loss:.4f}, accuracy {_percent(event.accuracy)}"
                test = f"test loss {event.test_loss:.4f}, accuracy {_percent(event.test_accuracy)}"
                self._print(f"epoch {event.epoch}/{self._epochs} (step {event.step})  {training}  {test}")
            case events.RunFinished():
                self._print_results(event)

    def _print_facts(self, run: events.RunFacts) -> None:
        shape, each = "x".join(map(str, run.image_shape)), " each" if run.ranks > 1 else ""
        threads = _count(run.threads, "shard")
        self._print(f"dptrain {dptrain.__version__}: {run.connection}, {threads} at a time{each}")
        self._print(
            f"data   {run.data}: {run.train_samples:,} training and {run.test_samples:,} test images {shape}, "
            f"{run.classes} classes, {run.shards} shards"
        )
        steps = f"{_count(run.steps_per_epoch, 'step')} an epoch, {run.last_step} in all"
        self._print(f"model  {run.model}: {run.parameters:,} parameters; {steps}")

    def _show_step(self, event: events.StepFinished) -> None:
        if event.logged:
            self._rate = f"{event.images_per_second:,.0f} images/s"
        epoch = f"epoch {event.epoch}/{self._epochs}"
        self._update_bar(completed=event.step, description=f"{epoch}  loss {event.loss:.3f}  {self._rate}")
        if self._bar is None and event.logged and not self._only_epochs:
            figures = f"loss {event.loss:.4f}  batch accuracy {_percent(event.accuracy)}  lr {event.lr:.5f}"
            self._print(f"step {event.step}  {epoch}  {figures}  {self._rate}")

    def _print_results(self, event: events.RunFinished) -> None:
        self.close()
        self._print(f"test accuracy {_percent(event.test_accuracy)} ({event.test_correct:,} of {event.test_samples:,})")
        if event.tta_accuracy is not None:
            self._print(f"test accuracy {_percent(event.tta_accuracy)} with test-time augmentation ({event.tta})")
        self._print(f"last checkpoint {event.last_checkpoint}")
        if event.best_checkpoint is not None and event.best_accuracy is not None:
            best = f"test accuracy {_percent(event.best_accuracy)}, step {event.best_step:,}"
            self._print(f"best checkpoint {event.best_checkpoint} ({best})")
        self._print(f"metrics         {Path(event.run_dir) / 'metrics.jsonl'}")
        self._print(f"params_sha256   {event.params_sha256}")

    def _start_bar(self, run: events.RunFacts, step: int) -> None:
        """On a terminal, show a bar; rich is imported only there, as that takes a tenth of a second."""
        self._epochs = run.epochs
        if on_terminal():
            self._bar = _make_bar()
            self._bar.add_task("", completed=step, total=run.last_step)
            self._bar.start()

    def _update_bar(self, **fields: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], **fields)

    def _print(self, line: str) -> None:
        """Print a line; names in it may come from files, so it is escaped (`shown`)."""
        if self._bar is not None:
            self._bar.console.print(shown(line), highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            print(shown(line), flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _make_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        """Adds an empty last line, because Open MPI's mpirun forwards only whole lines."""

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            yield ""

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=10), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.description}"))
