"""Configuration keys: fields of dataclasses with a scope, a help text and bounds. They define flags and TOML keys."""

from __future__ import annotations

import math
import operator
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

from dptrain.errors import UsageError
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

LIMIT = 2**63  # whole numbers are below it, as in TOML and HDF5
KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table"}
BOUNDS = {"at_least": operator.ge, "above": operator.gt, "below": operator.lt}


class Scope(Enum):
    """What a key affects, and what happens if a run is resumed with another value."""

    RUN = "the meaning of a step: a resumed run must keep the value"
    BITS = "the results: a resumed run may change the value, and the change is reported"
    FOLDER = "where the run is stored: not part of the saved configuration, no effect on the results"
    PROCESS = "how the process works: no effect on the results"


def key(default: Any, scope: Scope, help: str, **more: Any) -> Any:
    """A field of a `Config`.

    More: a bound (`at_least`, `above`, `below`), a `rule` (condition and what an error says was expected), `choices`,
    `read` (a function for text from a user, such as one that expands `~`), `metavar`, `example` (of a table),
    `dotted` (the names of a table may have dots).
    """
    metadata = {"scope": scope, "help": help, **more}
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
    """UsageError unless the value has the key's type and keeps its bounds."""
    found, more, given = f"{flag(key.name)} is {shown(repr(value), 200)}", key.metadata, type(value)
    if given is not kind(key):
        raise UsageError(f"{found}, expected {KIND_NAMES[kind(key)]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{found}, expected a finite number")
    if isinstance(value, int) and abs(value) >= LIMIT:
        raise UsageError(f"{found}, expected a number below 2^63")
    for name in BOUNDS.keys() & more.keys():
        if not BOUNDS[name](value, more[name]):
            raise UsageError(f"{found}, expected {name.replace('_', ' ')} {more[name]}")
    if "rule" in more and not more["rule"][0](value):
        raise UsageError(f"{found}, expected {more['rule'][1]}")
    if "choices" in more and value not in more["choices"]:
        raise UsageError(f"{found}; {did_you_mean(value, more['choices'])}")
