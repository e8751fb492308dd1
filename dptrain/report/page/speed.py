"""Throughput over time, and how each rank spends its time."""

from __future__ import annotations

from dptrain.report.overview import duration
from dptrain.report.page.charts import Axis, chart, curve
from dptrain.report.page.facts import PageFacts
from dptrain.report.page.figures import percent
from dptrain.report.page.history import KINDS, number
from dptrain.report.page.markup import NUMBER, Html, element, join, missing_note, scrolled
from dptrain.system.text import counted

MOST_RANKS = 32
STYLES = dict(zip(KINDS, ("c1", "c3", "c2", "c4"), strict=True))
MEANINGS = {"compute": "computing", "data": "loading data", "waiting": "waiting in MPI", "reduction": "reduction"}


def throughput(facts: PageFacts) -> Html:
    """Images per second of steps and of epochs."""
    history, per_epoch = facts.history, facts.steps_per_epoch
    curves = [
        curve("since the last logged step", "c5 back", history.steps, "images_per_second", per_epoch, background=True),
        curve("epoch", "c5", history.epochs, "images_per_second", per_epoch),
    ]
    return chart("Images per second", curves, Axis(0, zero=True), per_epoch=per_epoch)


def section(facts: PageFacts) -> Html:
    """The time of each rank by kind, and the evaluations."""
    ranks = facts.history.rank_seconds()
    if not ranks:
        return missing_note("No epoch is finished, so there are no times yet.")
    head = [
        element("th", "rank", scope="col"),
        element("th", "share of time", scope="col"),
        *(
            element("th", element("i", class_=f"key {STYLES[kind]}"), " ", MEANINGS[kind], scope="col", class_=NUMBER)
            for kind in KINDS
        ),
        element("th", "in all", scope="col", class_=NUMBER),
    ]
    rows = [_row(rank, seconds) for rank, seconds in enumerate(ranks[:MOST_RANKS])]
    caption = "Time of the steps of all epochs, by rank"
    whole = element(
        "table", element("caption", caption), element("thead", element("tr", *head)), element("tbody", *rows)
    )
    parts = [scrolled(caption, whole, "split-table")]
    if len(ranks) > MOST_RANKS:
        parts.append(missing_note(f"The first {MOST_RANKS} of {len(ranks)} ranks."))
    if "rank_seconds" not in facts.history.last:
        parts.append(missing_note("This run was made by an older version, which logs the time of rank 0 only."))
    parts.append(element("p", _in_words(facts)))
    return join(parts)


def _row(rank: int, seconds: dict[str, float]) -> Html:
    total = sum(seconds.values()) or 1.0
    bar = element(
        "div",
        *(element("i", class_=STYLES[kind], style=f"width:{100 * seconds[kind] / total:.2f}%") for kind in KINDS),
        class_="split",
        aria_hidden="true",
    )
    cells = (element("td", percent(seconds[kind] / total, 1), class_=NUMBER) for kind in KINDS)
    last = element("td", duration(sum(seconds.values())), class_=NUMBER)
    return element("tr", element("th", rank, scope="row"), element("td", bar, class_="bar"), *cells, last)


def _in_words(facts: PageFacts) -> str:
    evaluation = sum(number(line, "evaluation_seconds") or 0.0 for line in facts.history.epochs)
    lost = len(facts.history.recoveries)
    text = f"The evaluations took {duration(evaluation)}."
    return text + (f" The run continued without lost ranks {counted(lost, 'time')}." if lost else "")
