"""--report-to: reporters for other tools. An error in one of them never ends a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pkgutil import resolve_name

from dptrain.config.train import REPORTS, report_names
from dptrain.errors import UsageError
from dptrain.system.text import shown
from dptrain.training.events import Event, Note, Reporter


def optional_reporters(report_to: str, note: Callable[[str], None]) -> list[Reporter]:
    """The reporters of --report-to; UsageError if one needs a package that is not installed.

    `note` gets a line when a reporter fails. A reporter imports its package at its first event, so only on rank 0.
    """
    names = report_names(report_to)
    for name in names:
        package, _ = REPORTS[name]
        if find_spec(package) is None:
            raise UsageError(
                f"--report-to {name} needs the package {package}, which is not installed: pip install 'dptrain[{name}]'"
            )
    return [Guarded(name, resolve_name(REPORTS[name][1])(), note) for name in names]


class Guarded:
    """Passes events to a reporter. After an error in it, reports this once and drops further events."""

    def __init__(self, name: str, reporter: Reporter, note: Callable[[str], None]) -> None:
        self._name, self._reporter, self._note = name, reporter, note
        self._failed = False

    def handle(self, event: Event) -> None:
        if not self._failed:
            self._guard(lambda: self._reporter.handle(event))

    def close(self) -> None:
        self._guard(self._reporter.close)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            if not self._failed:
                reason = shown(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
                self._note(f"--report-to {self._name} failed and reports no more: {reason}; training continues")
            self._failed = True


def note_to(reporters: Sequence[Reporter]) -> Callable[[str], None]:
    """Sends a line for the user to these reporters."""

    def note(text: str) -> None:
        for reporter in reporters:
            reporter.handle(Note(text))

    return note
