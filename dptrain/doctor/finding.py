"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from dptrain.system.text import shown

OK, WARNING, FAILURE = "ok", "warning", "failure"
LONGEST = 600  # characters of a text


@dataclass(frozen=True)
class Finding:
    """The result of a check, in words for people; `remedy` says what to do after a warning or failure.

    `facts` are values for programs, and for comparing ranks; they can be written as JSON.
    """

    result: str
    found: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    check: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(found: str, **facts: Any) -> Finding:
    return Finding(OK, found, "", facts)


def warning(found: str, remedy: str, **facts: Any) -> Finding:
    return Finding(WARNING, found, remedy, facts)


def failure(found: str, remedy: str, **facts: Any) -> Finding:
    return Finding(FAILURE, found, remedy, facts)


class Check(NamedTuple):
    """A check by its name. `remedy` is what to do if it raises an exception."""

    name: str
    examine: Callable[[], Finding]
    remedy: str

    def run(self) -> Finding:
        """What the check finds; an exception is a failure."""
        try:
            found = self.examine()
        except Exception as error:  # broken software raises anything
            found = failure(described(error), self.remedy)
        return replace(found, check=self.name)


def run_all(checks: Iterable[Check]) -> list[Finding]:
    return [check.run() for check in checks]


def described(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return shown(f"{type(error).__name__}: {text}" if text else type(error).__name__, LONGEST)


def fact(findings: Iterable[Finding], name: str) -> Any:
    """The fact of this name, None if no finding has it."""
    return next((one.facts[name] for one in findings if name in one.facts), None)
