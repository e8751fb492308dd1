"""Reporters of a training run. A new reporter is one file here, with a class without arguments, and one line below."""

from pkgutil import resolve_name

from dptrain.training.events import Reporter

REPORTERS: tuple[type[Reporter], ...] = tuple(
    resolve_name(name)
    for name in (
        "dptrain.report.jsonl:JsonLines",
        "dptrain.report.html:HtmlPage",
    )
)  # fmt: skip


def output_reporter(*, quiet: bool, log_json: bool, result: bool = True) -> Reporter:
    """The reporter that prints: for people, almost nothing (--quiet), or JSON. `result`: --quiet prints the result."""
    if log_json:
        from dptrain.report.jsonl import JsonOutput

        return JsonOutput()
    from dptrain.report.console import Console, Quiet

    return Quiet(result=result) if quiet else Console()
