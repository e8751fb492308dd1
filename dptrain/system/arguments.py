"""Values of command-line arguments, for every program: argparse types whose errors say what was found and expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from dptrain.errors import UsageError

Value = TypeVar("Value")


def argument(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """The type of an argparse argument from a function that reads text and raises UsageError."""

    def convert(text: str) -> Value:
        try:
            return read(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    convert.__name__ = read.__name__  # argparse names it in its own errors
    return convert
