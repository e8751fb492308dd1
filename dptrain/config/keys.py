"""Configuration keys: fields of dataclasses with a scope, a help text and rules for the value.

They define flags, TOML keys and checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple

from dptrain.errors import UsageError
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

LIMIT = 2**63  # whole numbers are below it, as in TOML and HDF5
KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table"}


class Scope(Enum):
    """What a key affects, and what happens if a run is resumed with another value."""

    RUN = "the meaning of a step: a resumed run must keep the value"
    BITS = "the results: a resumed run may change the value, and the change is reported"
    FOLDER = "where the run is stored: not part of the saved configuration, no effect on the results"
    PROCESS = "how the process works: no effect on the results"


class Rule(NamedTuple):
    """A condition for a value, and what an error says was expected."""

    holds: Callable[[Any], object]
    expected: str


def at_least(bound: float) -> Rule:
    """The rule of a number that is at least `bound`."""
    return Rule(lambda value: value >= bound, f"at least {bound}")


def above(bound: float) -> Rule:
    """The rule of a number that is above `bound`."""
    return Rule(lambda value: value > bound, f"above {bound}")


def below(bound: float) -> Rule:
    """The rule of a number that is below `bound`."""
    return Rule(lambda value: value < bound, f"below {bound}")


def key(default: Any, scope: Scope, help: str, *rules: Rule, **more: Any) -> Any:
    """A field of a `Config`.

    More: `choices` (names), `read` (a function for text from a user, such as one that expands `~`), `metavar`,
    `example` (of a table).
    """
    metadata = {"scope": scope, "help": help, "rules": rules, **more}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, repr=False, eq=False)
class Config:
    """Base of the groups of keys; UsageError for a value that breaks a rule of its key."""

    def __post_init__(self) -> None:
        for one in fields(self):
            check(one, getattr(self, one.name))


def flag(name: str) -> str:
    """The flag of a key: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def kind(key: Field[Any]) -> type:
    """The type of a key's value."""
    return dict if key.default is MISSING else type(key.default)


def check(key: Field[Any], value: Any) -> None:
    """UsageError unless the value has the key's type and satisfies its rules."""
    choices = key.metadata.get("choices")
    if type(value) is not kind(key):
        expected: str | None = KIND_NAMES[kind(key)]
    elif isinstance(value, float) and not math.isfinite(value):
        expected = "a finite number"
    elif isinstance(value, int) and abs(value) >= LIMIT:
        expected = "a number below 2^63"
    else:
        expected = next((rule.expected for rule in key.metadata["rules"] if not rule.holds(value)), None)
    found = f"{flag(key.name)} is {shown(repr(value), 200)}"
    if expected is not None:
        raise UsageError(f"{found}, expected {expected}")
    if choices is not None and value not in choices:
        raise UsageError(f"{found}; {did_you_mean(value, choices)}")
