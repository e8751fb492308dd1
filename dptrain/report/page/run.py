"""The page of one run."""

from __future__ import annotations

from collections.abc import Iterator

from dptrain.checkpoint.state import PARAMETERS
from dptrain.report.overview import duration
from dptrain.report.page import classes, figures, gallery, provenance, speed
from dptrain.report.page.charts import MOST_POINTS, Axis, chart, curve, fitting_axis
from dptrain.report.page.facts import PageFacts
from dptrain.report.page.figures import MOST_METRICS, decimal, percent
from dptrain.report.page.frame import page
from dptrain.report.page.history import Line, number
from dptrain.report.page.markup import Html, element, fill, folded, join, missing_note, table
from dptrain.system.text import shown

LINKS = {
    "result": "Result",
    "curves": "Curves",
    "classes": "Classes",
    "mistakes": "Mistakes",
    "filters": "Filters",
    "speed": "Speed",
    "reproduce": "Reproduce",
    "configuration": "Configuration",
}
SPLITS = (("training", "", "c1"), ("validation", "validation_", "c3"), ("test", "test_", "c2"))  # name, prefix, style


def run_page(facts: PageFacts) -> str:
    """The HTML of the page."""
    start = facts.history.starts[0] if facts.history.starts else {}
    model = facts.config.model if facts.config else ""
    data = facts.checkpoint.origin.data_name if facts.checkpoint else ""
    what = " on ".join(filter(None, (model, data)))
    subtitle = " · ".join(filter(None, (what, figures.moment(start), figures.workers(start))))
    content = fill(
        "run.html",
        notices=join(element("p", notice, class_="notice") for notice in notices(facts)),
        tiles=tiles(facts),
        charts=charts(facts),
        epochs=epochs(facts),
        classes=classes.section(facts),
        mistakes=gallery.mistakes(facts),
        filters=gallery.filters(facts),
        speed=speed.section(facts),
        reproduce=provenance.reproduce(facts),
        configuration=provenance.configuration(facts),
    )
    return page("dptrain run report", facts.name, subtitle, LINKS, content)


def notices(facts: PageFacts) -> Iterator[str]:
    """What a reader must know before the figures."""
    if not facts.history.epochs:
        yield "No epoch of this run is finished."
    elif facts.last_step > facts.history.last["step"]:
        yield "This run is not finished. The same command with the same run folder continues it."
    if facts.predictions is not None:
        found, logged = facts.predictions.accuracy, number(facts.history.last, "test_accuracy")
        if logged is not None and found != logged:
            yield (
                f"The classes and mistakes below are of the checkpoint at step {facts.checkpoint_step:,}, evaluated on "
                f"this machine. Its accuracy is {percent(found)}; the last one of the run is {percent(logged)}."
            )


def tiles(facts: PageFacts) -> Html:
    """The result in large figures."""
    last, history = facts.history.last, facts.history
    split, best = figures.best(facts)
    correct = "" if facts.predictions is None else f"{facts.predictions.correct:,} of {len(facts.predictions):,}"
    whole = [("Test accuracy", percent(number(last, "test_accuracy")), correct)]
    if history.tta is not None:
        accuracy = percent(number(history.tta, "test_accuracy"))
        whole.append(("With augmentation", accuracy, f"test-time, {history.tta.get('tta')}"))
    whole.append(("Test loss", decimal(number(last, "test_loss")), ""))
    if split == "validation":
        loss = decimal(number(last, "validation_loss"))
        whole.append(("Validation accuracy", percent(number(last, "validation_accuracy")), f"loss {loss}"))
    if best and best["step"] != last["step"]:
        more = f"epoch {best['epoch']:,}, " + (
            f"test accuracy {percent(number(best, 'test_accuracy'))}"
            if split == "validation"
            else "chosen on the test split"
        )
        whole.append((f"Best {split} accuracy", percent(number(best, f"{split}_accuracy")), more))
    rate = figures.rate(facts)
    whole += [
        ("Training accuracy", percent(number(last, "accuracy")), f"loss {decimal(number(last, 'loss'))}"),
        ("Epochs", *figures.progress(facts)),
        ("Time", duration(history.seconds), "steps and evaluations"),
        ("Images per second", decimal(rate, 0), "median of the epochs"),
    ]
    if facts.checkpoint is not None:
        whole.append(("Parameters", f"{facts.checkpoint.layouts[PARAMETERS].size:,}", ""))
    parts = [
        element(
            "div",
            element("dt", name),
            element("dd", element("span", value, class_="value"), element("span", more, class_="more")),
            class_=None if place else "first",
        )
        for place, (name, value, more) in enumerate(whole)
    ]
    return element("dl", *parts, class_="tiles")


def charts(facts: PageFacts) -> Html:
    """Loss, accuracy and learning rate."""
    history, per_epoch = facts.history, facts.steps_per_epoch
    loss, accuracy = (
        [
            curve("single batches", "c1 back", history.steps, key, per_epoch, background=True),
            *(curve(name, style, history.epochs, prefix + key, per_epoch) for name, prefix, style in SPLITS),
        ]
        for key in ("loss", "accuracy")
    )
    lines = {line["step"]: line for line in (*history.steps, *history.epochs)}
    rates = [lines[step] for step in sorted(lines)]
    parts = [
        chart("Loss", loss, Axis(4), per_epoch=per_epoch),
        chart("Accuracy", accuracy, Axis(2, scale=100, unit=" %"), per_epoch=per_epoch),
        chart(
            "Learning rate",
            [curve("learning rate", "c4", rates, "lr", per_epoch)],
            Axis(6, zero=True),
            per_epoch=per_epoch,
        ),
        speed.throughput(facts),
        *logged(facts),
    ]
    if not any(parts):
        return missing_note("metrics.jsonl has no figures yet.")
    return element("div", *parts, class_="charts")


def logged(facts: PageFacts) -> Iterator[Html]:
    """Charts of the metrics that a program has logged."""
    by_name, per_epoch = facts.history.metrics_by_name, facts.steps_per_epoch
    for name in [*by_name][:MOST_METRICS]:
        many = len(by_name[name]) > MOST_POINTS
        found = curve(shown(name, 80), "c6", by_name[name], "value", per_epoch, background=many)
        yield chart(found.name, [found], fitting_axis(found.y), per_epoch=per_epoch)
    yield figures.left_out(len(by_name))


def epochs(facts: PageFacts) -> Html:
    """The figures of all epochs as a table."""
    columns: list[tuple[str, str, int, float, str]] = [("learning rate", "lr", 6, 1, "")]
    for name, prefix, _ in SPLITS:
        columns.append((f"{name} loss", f"{prefix}loss", 4, 1, ""))
        columns.append((f"{name} accuracy", f"{prefix}accuracy", 2, 100, " %"))
    columns += [("images/s", "images_per_second", 0, 1, ""), ("evaluation", "evaluation_seconds", 2, 1, " s")]
    lines = facts.history.epochs
    columns = [one for one in columns if any(number(line, one[1]) is not None for line in lines)]

    def cell(line: Line, key: str, digits: int, scale: float, unit: str) -> str:
        value = number(line, key)
        return decimal(None) if value is None else f"{decimal(value * scale, digits)}{unit}"

    rows = [[f"{line['epoch']:,}", f"{line['step']:,}", *(cell(line, *one[1:]) for one in columns)] for line in lines]
    head = ["epoch", "step", *(one[0] for one in columns)]
    return folded("All epochs as a table", table("Figures by epoch", head, rows)) if lines else Html("")
