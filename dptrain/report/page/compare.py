"""The page that compares several runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from dptrain.config.files import inline_table
from dptrain.report.overview import duration
from dptrain.report.page import figures
from dptrain.report.page.charts import MOST_POINTS, Axis, chart, curve, fitting_axis
from dptrain.report.page.facts import PageFacts
from dptrain.report.page.figures import MOST_METRICS, NONE, decimal, percent
from dptrain.report.page.frame import page
from dptrain.report.page.history import Line, number
from dptrain.report.page.markup import Html, element, fill, join, missing_note, table
from dptrain.report.page.reproduce import decides_results
from dptrain.system.text import shown

LINKS = {"result": "Results", "curves": "Curves", "configuration": "Differences"}
COLORS, DASHES = 8, ("", " dashed", " dotted")  # styles of page.css
COMPARED = ("data", "threads")  # keys that are compared besides those that decide the results
HEAD = (
    "run",
    "test accuracy",
    "test loss",
    "best accuracy (split)",
    "epochs",
    "time",
    "images/s",
    "ranks",
    "params_sha256",
)


def compare_page(runs: Sequence[PageFacts]) -> str:
    """The HTML of the page."""
    names = distinct_names(runs)
    content = fill(
        "compare.html",
        notices=join(element("p", notice) for notice in equal_parameters(runs, names)),
        results=table("One run a line", HEAD, [result(*one) for one in zip(names, runs, strict=True)]),
        charts=charts(runs, names),
        differences=differences(runs, names),
    )
    return page("dptrain comparison", f"{len(runs)} runs", ", ".join(names), LINKS, content)


def distinct_names(runs: Sequence[PageFacts]) -> list[str]:
    """The names of the folders, or their paths where two have the same name."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def equal_parameters(runs: Sequence[PageFacts], names: Sequence[str]) -> Iterator[str]:
    """A sentence for runs that ended with the same bits."""
    by_hash: dict[object, list[str]] = defaultdict(list)
    for run, name in zip(runs, names, strict=True):
        by_hash[run.history.last.get("params_sha256")].append(name)
    for digest, same in by_hash.items():
        if digest is not None and len(same) > 1:
            yield f"The same parameters, bit for bit: {', '.join(same)}."


def result(name: str, run: PageFacts) -> list[object]:
    last = run.history.last
    split, best = figures.best(run)
    digest = last.get("params_sha256")
    return [
        name,
        percent(number(last, "test_accuracy")),
        decimal(number(last, "test_loss")),
        f"{percent(number(best, f'{split}_accuracy'))} ({split})" if best else NONE,
        figures.progress(run)[0],
        duration(run.history.seconds),
        decimal(figures.rate(run), 0),
        figures.workers(run.history.last_start),
        NONE if digest is None else element("code", str(digest)[:12]),
    ]


def charts(runs: Sequence[PageFacts], names: Sequence[str]) -> Html:
    """The curves of all runs in one plot for each figure; x is counted in epochs if each run has a finished one."""
    counted = all(run.steps_per_epoch for run in runs)
    per_epoch = [run.steps_per_epoch if counted else 0 for run in runs]

    def plot(title: str, key: str, axis: Axis | None, lines: Sequence[Sequence[Line]]) -> Html:
        curves = [
            curve(name, style(place), of_run, key, each, background=len(of_run) > MOST_POINTS)
            for place, (name, of_run, each) in enumerate(zip(names, lines, per_epoch, strict=True))
        ]
        axis = axis or fitting_axis([value for one in curves for value in one.y])
        return chart(title, curves, axis, per_epoch=max(per_epoch))

    share = Axis(2, scale=100, unit=" %")
    epochs, metrics = [run.history.epochs for run in runs], [run.history.metrics_by_name for run in runs]
    logged = [*dict.fromkeys(name for of_run in metrics for name in of_run)]
    parts = [
        plot("Test accuracy", "test_accuracy", share, epochs),
        plot("Test loss", "test_loss", Axis(4), epochs),
        plot("Validation accuracy", "validation_accuracy", share, epochs),
        plot("Validation loss", "validation_loss", Axis(4), epochs),
        plot("Training loss", "loss", Axis(4), epochs),
        plot("Images per second", "images_per_second", Axis(0, zero=True), epochs),
        *(plot(shown(name, 80), "value", None, [of.get(name, []) for of in metrics]) for name in logged[:MOST_METRICS]),
        figures.left_out(len(logged)),
    ]
    if not any(parts):
        return missing_note("No run has finished an epoch.")
    return element("div", *parts, class_="charts")


def style(place: int) -> str:
    """Of 24 runs each has another color or other dashes. Between the dashes, an equal curve below is seen."""
    return f"c{place % COLORS + 1}{DASHES[place % len(DASHES)]}"


def differences(runs: Sequence[PageFacts], names: Sequence[str]) -> Html:
    """Keys of the configuration and facts of the environment that are not the same for all runs."""
    facts = [settings_and_environment(run) for run in runs]
    keys = list(dict.fromkeys(key for one in facts for key in one))
    rows = [
        [key, *(element("code", one[key]) if key in one else NONE for one in facts)]
        for key in keys
        if len({one.get(key) for one in facts}) > 1
    ]
    if not rows:
        return missing_note("Configuration, data set, environment and versions are the same.")
    return table("Keys and facts that differ", ["", *names], rows, texts=range(1, len(names) + 1))


def settings_and_environment(run: PageFacts) -> dict[str, str]:
    """Configuration, data set, environment and versions as text, by name."""
    found: dict[str, str] = {}
    for name, value in vars(run.config).items() if run.config else ():
        if decides_results(name) or name in COMPARED:
            found[name.replace("_", "-")] = inline_table(value) if isinstance(value, dict) else str(value)
    if run.checkpoint is not None:
        origin = run.checkpoint.origin
        found |= {"data hash": origin.manifest_sha256[:12], **origin.environment}
    found |= {name: str(value) for name, value in run.history.versions.items()}
    start = run.history.last_start
    return found | {"host": str(start["host"])} if "host" in start else found
