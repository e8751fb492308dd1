"""Command lines, for every program: a parser whose errors are UsageErrors, and types for its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dptrain.errors import UsageError
from dptrain.system.paths import typed_path
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

Value = TypeVar("Value")
LIMIT = 2**63  # whole numbers are below it, as in TOML and HDF5


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for programs and commands: no abbreviations, and a UsageError with advice for a wrong word."""

    explanations: Mapping[str, str] = {}  # advice for unknown flags, see dptrain.system.suggestions
    advice_on_words = "quote it if it belongs to a flag"  # advice for an unknown word without dashes

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    @property
    def advice(self) -> str:
        return f"see {self.prog} --help"  # the end of every error

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.advice}")

    def parse_known_args(  # type: ignore[override]  # no argument is left over
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """argparse calls it for each command's parser."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            near = did_you_mean(word, self._option_string_actions, self.advice, self.explanations)
            advice = near if word.startswith("-") else self.advice_on_words
            raise UsageError(f"unknown argument {shown(repr(word), 100)}; {advice}")
        return found, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Called by argparse for a command, or the value of a flag that has choices."""
        if action.choices is not None and value not in action.choices:
            of_commands = isinstance(action, argparse._SubParsersAction)
            what = "unknown command" if of_commands else f"{(*action.option_strings, action.dest)[0]} is"
            raise UsageError(f"{what} {shown(repr(value), 100)}; {did_you_mean(str(value), action.choices)}")


def argument(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """The type of an argument: `read` converts its text, or raises UsageError."""

    def convert(text: str) -> Value:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def whole(least: int = 1) -> Callable[[str], int]:
    """The type of an argument that is a whole number >= `least` >= 0."""

    def convert(text: str) -> int:
        digits = text.lstrip("0")  # of a text of any length, which int() may refuse
        if text.isdecimal() and (len(digits) > 19 or int(digits or "0") >= LIMIT):
            raise argparse.ArgumentTypeError(f"found {shown(repr(text), 100)}, expected at most {LIMIT - 1}")
        if not text.isdecimal() or int(digits or "0") < least:
            found = shown(repr(text), 100)
            raise argparse.ArgumentTypeError(f"found {found}, expected a whole number of at least {least}")
        return int(text)

    return convert


def share(text: str) -> float:
    """The type of an argument that is a number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"found {shown(repr(text), 100)}, expected a number above 0 and below 1")
    return value


@argument
def path_argument(text: str) -> Path:
    """The type of an argument that is a path; `~` is expanded."""
    return Path(typed_path(text))
