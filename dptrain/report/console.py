"""What a run prints for people: a live view on a terminal, lines elsewhere, or (--quiet) only warnings and the result.

Lines are for pipes, files, TERM=dumb and notebooks, which would save every frame. Under mpirun a rank cannot detect a
terminal: Open MPI gives it a pseudo-terminal even if mpirun's output goes to a file. The launcher can, and sets
DPTRAIN_PROGRESS.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dptrain
from dptrain.report.overview import (
    clock,
    duration,
    fitted,
    lines_of,
    next_commands,
    percent,
    result_rows,
    start_rows,
)
from dptrain.report.pace import Pace
from dptrain.system.launched import launched_size
from dptrain.system.memory import used_memory
from dptrain.system.streams import in_notebook, on_dumb_terminal, write_to_stderr
from dptrain.system.text import counted, shown
from dptrain.training import events

if TYPE_CHECKING:
    from dptrain.report.view import View

WIDE = 1000  # columns: lines that go elsewhere are complete
PROGRESS_VARIABLE = "DPTRAIN_PROGRESS"  # "bar" or "lines"
MEASURED_SECONDS, MEASURED_STEPS = 2.0, 10  # after which the time of the run is estimated


def on_terminal() -> bool:
    """Whether to show a live view on standard output."""
    wanted = os.environ.get(PROGRESS_VARIABLE)
    if wanted:
        return wanted == "bar"
    return sys.stdout.isatty() and launched_size() is None and not in_notebook() and not on_dumb_terminal()


class Console:
    """The facts of a run, one line an epoch and the result, on standard output; on a terminal a live view below."""

    def __init__(self) -> None:
        self._live = on_terminal()
        self._view: View | None = None
        self._run: events.RunFacts | None = None
        self._pace: Pace | None = None
        self._estimated = False
        if self._live:  # before workers are forked: their text erases the view too
            from dptrain.report.view import text_above_the_view

            text_above_the_view(True)

    def handle(self, event: events.Event) -> None:
        match event:
            case events.Note(text):
                self._print(text)
            case events.RunStarted(run, step, resumed_from):
                self._begin(run, step)
                self._print_start(run, step, resumed_from)
            case events.RanksLost(run, step, lost, seconds):
                self._print(lost_ranks(run, step, lost, seconds))
                self._begin(run, step)
            case events.StepFinished():
                self._show_step(event)
            case events.CheckpointSaved() if self._view:
                self._view.checkpoint_saved()
            case events.EvaluationStarted() if self._view:
                self._view.evaluation_started()
            case events.EvaluationFinished():
                self._show_evaluation(event)
            case events.MetricLogged(step, _, name, value):
                self._print(f"step {step:,}, {name} {value:.6g}")
            case events.RunFinished():
                self._print_results(event)

    def _begin(self, run: events.RunFacts, step: int) -> None:
        """At the start, and again after ranks were lost."""
        self._run, self._pace = run, Pace(run, step)
        if self._view is not None:
            self._view.close()
        if self._live:
            from dptrain.report.view import View

            self._view = View(run, self._pace, launched=launched_size() is not None)

    def _print_start(self, run: events.RunFacts, step: int, resumed_from: str | None) -> None:
        title, rows = f"dptrain {dptrain.__version__}", start_rows(run, step, resumed_from)
        if self._view is None:
            self._print("\n".join([title, *lines_of(rows)]), escaped=True)
        else:
            self._print(self._view.box(title, rows), escaped=True)
            self._view.draw()

    def _show_step(self, event: events.StepFinished) -> None:
        pace = self._pace
        if pace is None:
            return
        pace.step_finished(event.step)
        if self._view is not None:
            self._view.step_finished(event)
        if not self._estimated and pace.steps > MEASURED_STEPS and pace.elapsed > MEASURED_SECONDS:
            self._print_estimate(pace)

    def _print_estimate(self, pace: Pace) -> None:
        """Time and memory of the run, once, when enough steps are measured."""
        self._estimated, left, used = True, pace.left(), used_memory()
        if left is None:
            return
        evaluations = ", and evaluations" if pace.evaluation_seconds is None else ""
        rows = [
            (
                "estimated time",
                f"{duration(pace.elapsed + left)}{evaluations} (measured: {counted(pace.steps, 'step')})",
            )
        ]
        if used is not None:
            rows.append(("memory", f"{used / (1 << 20):,.0f} MiB{' on rank 0' if pace.run.ranks > 1 else ''}"))
        self._print("\n".join(lines_of(rows)), escaped=True)

    def _show_evaluation(self, event: events.EvaluationFinished) -> None:
        run, pace = self._run, self._pace
        if run is None or pace is None:
            return
        pace.evaluation_finished(event.evaluation_seconds)
        if self._view is not None:
            self._view.evaluation_finished(event)
        left, rate = pace.left(), event.images_per_second
        cells = [
            (0, f"epoch {event.epoch}/{run.epochs}"),
            (3, f"step {event.step:,}"),
            (1, f"loss {event.loss:.4f}, accuracy {percent(event.accuracy)}"),
            (0, f"test loss {event.test_loss:.4f}, accuracy {percent(event.test_accuracy)}"),
        ]
        if event.validation_accuracy is not None:
            cells.insert(3, (0, f"validation accuracy {percent(event.validation_accuracy)}"))
        if rate is not None:
            cells.append((2, f"{rate:,.0f} images/s"))
        if left and event.step < run.last_step:
            cells.append((4, f"{clock(left)} left"))
        self._print(fitted(cells, self._view.columns if self._view else WIDE))

    def _print_results(self, event: events.RunFinished) -> None:
        run, pace = self._run, self._pace
        self.close()
        if run is None or pace is None:
            return
        results = lines_of(result_rows(event, pace.elapsed, pace.steps, pace.rate()))
        offers = [f"  {line}" for line in lines_of(next_commands(run, event.step, this_program()))]
        self._print("\n".join(["", *results, "", "next:", *offers]), escaped=True)

    def _print(self, text: str, *, escaped: bool = False) -> None:
        """Print text above the view. Names in it may come from files, so it is `shown`, or was `escaped` before."""
        print(text if escaped else shown(text), flush=True)
        if self._view is not None:
            self._view.draw()

    def close(self) -> None:
        """Remove the view."""
        if self._view is not None:
            self._view.close()
            self._view = None
        if self._live:
            from dptrain.report.view import text_above_the_view

            text_above_the_view(False)


class Quiet:
    """Notes and lost ranks on standard error; on standard output one line, the result, unless it is not wanted."""

    def __init__(self, *, result: bool = True) -> None:
        self._result = result
        self._pace: Pace | None = None

    def handle(self, event: events.Event) -> None:
        match event:
            case events.Note(text):
                write_to_stderr(f"dptrain: {shown(text)}")
            case events.RunStarted(run, step):
                self._pace = Pace(run, step)
            case events.RanksLost(run, step, lost, seconds):
                self._pace = self._pace or Pace(run, step)
                write_to_stderr(f"dptrain: {shown(lost_ranks(run, step, lost, seconds))}")
            case events.RunFinished() if self._result and self._pace:
                accuracy = f"test accuracy {percent(event.test_accuracy)}, test loss {event.test_loss:.4f}"
                print(f"{shown(event.run_dir)}: {accuracy}, {duration(self._pace.elapsed)}", flush=True)

    def close(self) -> None:
        """Nothing is open."""


def this_program() -> str:
    """The words that start this program in the user's shell, where `python` may be another Python."""
    if shutil.which("dptrain"):
        return "dptrain"
    python = sys.executable or "python"
    with contextlib.suppress(OSError):  # the working directory may have been removed
        python = python.removeprefix(f"{Path.cwd()}/")
    return f"{shlex.quote(python)} -m dptrain"


def lost_ranks(run: events.RunFacts, step: int, lost: list[int], seconds: float) -> str:
    """The line that reports a recovery."""
    left = f"{counted(run.ranks, 'rank')} of {counted(run.threads, 'thread')} continue from step {step}"
    return f"rank {', '.join(map(str, lost))} died: {left} after {seconds:.2f} s"
