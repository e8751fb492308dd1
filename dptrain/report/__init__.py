"""Reporters of a training run. A new reporter is one file here, with a class without arguments, and one line below."""

from pkgutil import resolve_name

from dptrain.training.events import Reporter

REPORTERS: tuple[type[Reporter], ...] = tuple(
    resolve_name(name)
    for name in (
        "dptrain.report.jsonl:JsonLines",
        "dptrain.report.console:Console",
        "dptrain.report.html:HtmlPage",
    )
)
