"""Figures of a run as text, the same on every page."""

from __future__ import annotations

import statistics
from datetime import datetime

from dptrain.report.page.facts import PageFacts
from dptrain.report.page.history import Line, number
from dptrain.report.page.markup import Html, missing_note
from dptrain.system.text import counted

MOST_METRICS = 24  # of a program that are drawn
NONE = "-"  # for a figure that is not known


def left_out(metrics: int) -> Html:
    """A sentence if more metrics were logged than are drawn."""
    text = f"{metrics:,} metrics were logged; the first {MOST_METRICS} are drawn."
    return missing_note(text) if metrics > MOST_METRICS else Html("")


def percent(share: float | None, digits: int = 2) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def decimal(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def moment(line: Line) -> str:
    """The time of a start, such as 28 Nov 2026, 04:38 UTC; "" if the line has none."""
    try:
        return f"{datetime.fromisoformat(line['time']):%d %b %Y, %H:%M %Z}"
    except (KeyError, TypeError, ValueError):
        return ""


def workers(line: Line) -> str:
    """The ranks and threads of a start, such as 2 ranks of 4 threads."""
    ranks, threads = line.get("ranks"), line.get("threads")
    if type(ranks) is not int or type(threads) is not int:
        return NONE
    return f"{counted(ranks, 'rank')} of {counted(threads, 'thread')}"


def rate(facts: PageFacts) -> float | None:
    """The median of the epochs' images per second."""
    found = [value for line in facts.history.epochs if (value := number(line, "images_per_second")) is not None]
    return statistics.median(found) if found else None


def best(facts: PageFacts) -> tuple[str, Line]:
    """The split whose accuracy chooses the best epoch, and the line of that epoch, the first of several."""
    lines = facts.history.epochs
    split = "validation" if any(number(line, "validation_accuracy") is not None for line in lines) else "test"
    return split, max(lines, key=lambda line: number(line, f"{split}_accuracy") or 0.0, default={})


def progress(facts: PageFacts) -> tuple[str, str]:
    """Epochs and steps, such as 5 and 1,955 steps; of an unfinished run 3 of 5, and 800 of 1,955 steps."""
    done = facts.history.last.get("step", 0)
    steps = max([done, *(line["step"] for line in facts.history.steps[-1:])])
    epochs = facts.config.epochs if facts.config else 0
    per_epoch, last = facts.steps_per_epoch, facts.last_step
    passed = steps / per_epoch if per_epoch else 0
    if steps < last:
        return f"{passed:.3g} of {epochs:,}", f"{steps:,} of {last:,} steps"
    return f"{passed:.3g}", counted(steps, "step")
