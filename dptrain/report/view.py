"""The live view: bars and figures of a run, redrawn in place below the text that the run prints.

A frame begins with an empty line, and leaves the cursor there. So text of anyone, such as a layer in a forked worker,
appears where the frame was; the next frame is drawn below it. The cursor never moves up over text, also after the
terminal was resized and has wrapped the frame. A frame ends with a line break, because Open MPI's mpirun forwards only
whole lines. The launcher knows frames by ERASE and FRAME_END (launch/output.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from dptrain.report.overview import Cells, Rows, clock, fitted, percent
from dptrain.report.pace import Pace
from dptrain.system.streams import erase_before_text, incomplete_line
from dptrain.system.text import shown
from dptrain.training.events import EvaluationFinished, RunFacts, StepFinished

ERASE = "\r\x1b[J"  # from the cursor to the end of the screen
FRAME_END = "\x1b[{}A\r\n"  # to the line above the empty one, and on to that
WRAP_OFF, WRAP_ON = "\x1b[?7l", "\x1b[?7h"  # a terminal that has become narrower cuts the lines
LEAST_SECONDS = 0.25  # between two frames
COST = 1 / 300  # the largest share of time that drawing takes
WINDOW = 2.0  # seconds over which rates are measured, if no step was logged before
GAP = "   "
TIME_WIDTH = len("1:00:00 left")


class View:
    """The view of a run on a terminal. Events arrive by the methods; each may draw a frame."""

    def __init__(self, run: RunFacts, pace: Pace, *, launched: bool) -> None:
        from rich.console import Console  # here, as it takes a tenth of a second

        self.run, self.pace, self.launched = run, pace, launched
        self._console = Console(file=sys.stdout, force_terminal=True, width=80, legacy_windows=False)
        self._loss = self._accuracy = 0.0  # sums over the steps of the epoch
        self._steps = 0  # of the epoch, seen by this process
        self._epoch = 0
        self._last: StepFinished | None = None
        self._speed: StepFinished | None = None  # the event whose rate and seconds are shown
        self._whole = False  # whether its rate is that of a whole window; until then each step is shown
        self._tested: float | None = None  # the newest test accuracy
        self._saved: float | None = None  # when a checkpoint was saved
        self._evaluating = False
        self._next = 0.0  # when the next frame may be drawn
        self._handles_stop = False
        if not launched and threading.current_thread() is threading.main_thread():
            self._handles_stop = signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
            if self._handles_stop:
                signal.signal(signal.SIGTSTP, self._stop)

    def step_finished(self, event: StepFinished) -> None:
        if event.epoch != self._epoch:
            self._epoch, self._steps, self._loss, self._accuracy = event.epoch, 0, 0.0, 0.0
        self._steps += 1
        self._loss += event.loss
        self._accuracy += event.accuracy
        self._last, self._evaluating = event, False
        whole = event.logged or sum(event.seconds.values()) > WINDOW
        if whole or not self._whole:
            self._speed, self._whole = event, whole
        if time.perf_counter() >= self._next:
            self.draw()

    def checkpoint_saved(self) -> None:
        self._saved = time.perf_counter()

    def evaluation_started(self) -> None:
        self._evaluating = True
        self.draw()

    def evaluation_finished(self, event: EvaluationFinished) -> None:
        self._tested, self._evaluating = event.test_accuracy, False

    def draw(self) -> None:
        """Draw a frame; nothing if the process is in the background of its terminal."""
        if not self._in_foreground():
            return
        started = time.perf_counter()
        width, rows = self._size()
        lines = self._lines(width)[: max(0, rows - 2)]
        frame = "\r\n" if incomplete_line() else ""
        frame += f"{ERASE}{WRAP_OFF}\r\n" + "\r\n".join(lines) + WRAP_ON + FRAME_END.format(len(lines) + 1)
        sys.stdout.write(frame)
        sys.stdout.flush()
        now = time.perf_counter()
        self._next = now + max(LEAST_SECONDS, (now - started) / COST)

    def close(self) -> None:
        """Remove the view."""
        if self._handles_stop:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            self._handles_stop = False
        if self._in_foreground():
            sys.stdout.write(ERASE)
            sys.stdout.flush()

    def box(self, title: str, rows: Rows) -> str:
        """The rows in a box that is as wide as the text, or as the terminal."""
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, text in rows:
            table.add_row(Text(name, "bold"), Text(shown(text), overflow="fold"))
        panel = Panel.fit(table, title=Text(title, "bold"), title_align="left")
        return "\n".join(self._rendered(panel, self.columns))

    def _lines(self, width: int) -> list[str]:
        """The lines of a frame, without the empty one."""
        figures, shares = self._figures(), self._shares()
        if sum(len(text) + len(GAP) for _, text in (*figures, *shares)) <= width:
            figures, shares = [*figures, *shares], []
        lines = (fitted(figures, width, GAP), fitted(shares, width, GAP))
        return [*self._rendered(self._bars(width), width), *filter(None, lines)]

    def _rendered(self, renderable: Any, width: int) -> list[str]:
        """What rich makes of it, as lines with the escape sequences of colors that the terminal has."""
        self._console.width = width
        with self._console.capture() as capture:
            self._console.print(renderable, no_wrap=True, overflow="crop", highlight=False)
        return capture.get().rstrip("\n").split("\n")

    def _bars(self, width: int) -> Any:
        """Two bars, of the run and of the epoch, as wide as the terminal allows. A rich Table took 5 times as long."""
        from rich.text import Text

        run, step = self.run, self.pace.step
        epoch = self._epoch or step // run.steps_per_epoch + 1
        first = (epoch - 1) * run.steps_per_epoch
        of_epoch = min(run.steps_per_epoch, run.last_step - first)
        bars = (
            (f"epoch {epoch}/{run.epochs}", step, run.last_step, self.pace.left()),
            (f"step {step - first:,}/{of_epoch:,}", step - first, of_epoch, self.pace.epoch_left()),
        )
        label = max(len(name) for name, *_ in bars)
        text = Text()
        for number, (name, done, total, left) in enumerate(bars):
            time_left = "evaluating" if number and self._evaluating else "" if left is None else f"{clock(left)} left"
            end = f"{100 * done // max(1, total):3} %"
            if width >= label + len(end) + TIME_WIDTH + 6:
                end += f"  {time_left:>{TIME_WIDTH}}"
            filled, rest = self._bar(width - label - len(end) - 4, done / max(1, total))
            text.append(f"{name:<{label}}  ").append(filled, "cyan").append(rest, "bright_black").append(f"  {end}\n")
        return text

    def _bar(self, width: int, share: float) -> tuple[str, str]:
        """The two parts of a bar; without colors the second one is blank."""
        encoding = self._console.encoding
        full = round(max(0, width) * min(1.0, share))
        character = "\N{BOX DRAWINGS HEAVY HORIZONTAL}" if encoding.startswith("utf") else "-"
        return character * full, (character if self._console.color_system else " ") * (width - full)

    def _figures(self) -> Cells:
        last, speed = self._last, self._speed
        if last is None or speed is None:
            return [(0, "making the first step")]
        cells = [(0, f"loss {self._loss / self._steps:.4f}"), (1, f"accuracy {percent(self._accuracy / self._steps)}")]
        if self._tested is not None:
            cells.append((4, f"test accuracy {percent(self._tested)}"))
        if speed.images_per_second is not None:
            cells.append((2, f"{speed.images_per_second:,.0f} images/s"))
        return [*cells, (3, f"learning rate {last.lr:.4g}")]

    def _shares(self) -> Cells:
        seconds = self._speed.seconds if self._speed else {}
        total = sum(seconds.values())
        order = ("compute", "reduction", "data", "waiting")
        shares = (
            [(rank, f"{name} {100 * seconds[name] / total:.0f} %") for rank, name in enumerate(order)] if total else []
        )
        age = (
            "no checkpoint yet" if self._saved is None else f"checkpoint {_age(time.perf_counter() - self._saved)} old"
        )
        return [*shares, (5, age)]

    @property
    def columns(self) -> int:
        return self._size()[0]

    def _size(self) -> tuple[int, int]:
        """Columns and rows. Open MPI gives a rank a terminal without a size; the launcher passes the width on."""
        columns = rows = 0
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1)
        given = os.environ.get("COLUMNS", "")
        return columns or (int(given) if given.isdecimal() and int(given) else 80), rows or 24

    def _in_foreground(self) -> bool:
        """Whether this process may write to its terminal; always true for a rank, whose output the launcher reads."""
        if self.launched:
            return True
        try:
            return os.tcgetpgrp(1) == os.getpgrp()
        except OSError:  # no terminal, or it is gone; then the text is dropped
            return True

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """The handler of Ctrl-Z: leave a clean screen to the shell, then stop. The next step draws again."""
        with contextlib.suppress(RuntimeError):  # the signal arrived within a write
            sys.stdout.write(ERASE)
            sys.stdout.flush()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when this process is continued
        signal.signal(number, self._stop)


def text_above_the_view(wanted: bool) -> None:
    """Whether text of this process, and of workers that it forks later, erases the view before it is printed."""
    erase_before_text(ERASE.lstrip("\r") if wanted else "")


def _age(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.0f} h"
    )
