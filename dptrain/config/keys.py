"""Configuration keys: a field of a dataclass with its default, its help text, its scope and the rules for its value.

Flags, TOML keys and checks are all made from these fields.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

from dptrain.errors import UsageError
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

LIMIT = 2**63  # whole numbers are below it, as in TOML and HDF5
KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a table of arguments",
}
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}


class Scope(Enum):
    """What a key affects, and so what happens when a run is resumed with another value."""

    RUN = "the meaning of a step: a resumed run must keep the value"
    BITS = "the results: a resumed run may change the value, and the change is reported"
    FOLDER = "where the run is stored: not part of the saved configuration, no effect on the results"
    PROCESS = "how the process works: no effect on the results"


def rules(scope: Scope, help: str, **more: Any) -> dict[str, Any]:
    """The metadata of a key's field.

    `least`, `above`, `below` (bounds), `choices` (names), `form` (a pattern and its description), `factors` (the values
    of the table are factors); `read` (a function for text from a user, such as one that expands `~`), `example` (of a
    table), `metavar`.
    """
    return {"scope": scope, "help": help, **more}


def key(default: Any, scope: Scope, help: str, **more: Any) -> Any:
    """A field of a `Config`; a table is written as `field(default_factory=dict, metadata=rules(...))`."""
    return field(default=default, metadata=rules(scope, help, **more))


def flag(name: str) -> str:
    """The flag of a key: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def kind(key: Field[Any]) -> type:
    """The type of a key's value."""
    return dict if key.default is MISSING else type(key.default)


@dataclass(frozen=True, repr=False, eq=False)
class Config:
    """Base of the groups of keys; UsageError for a value that breaks its key's rules."""

    def __post_init__(self) -> None:
        for one in fields(self):
            check(one, getattr(self, one.name))


def check(key: Field[Any], value: Any) -> None:
    """UsageError unless the value has the key's type and obeys its rules."""
    names = key.metadata.get("choices")
    expected = _broken_rule(key, value)
    if expected is None and names is not None and value not in names:
        raise UsageError(f"{flag(key.name)} is {written(value)}; {did_you_mean(value, names)}")
    if expected is None:
        expected = _broken_text(value)
    if expected is not None:
        raise UsageError(f"{flag(key.name)} is {written(value)}, expected {expected}")


def _broken_rule(key: Field[Any], value: Any) -> str | None:
    """What was expected of the value, where it has another type or breaks a rule; otherwise None."""
    required = key.metadata
    if type(value) is not kind(key):
        return KIND_NAMES[kind(key)]
    if "form" in required and not required["form"][0].fullmatch(value):
        return str(required["form"][1])
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    for rule, (holds, words) in BOUNDS.items():
        if rule in required and not holds(value, required[rule]):
            return f"{words} {required[rule]}"
    if isinstance(value, int) and abs(value) >= LIMIT:
        return "a number below 2^63"
    factors = value.values() if isinstance(value, dict) and "factors" in required else ()
    if not all(type(factor) in (int, float) and 0 <= factor < math.inf for factor in factors):
        return "factors of at least 0"
    return None


def _broken_text(value: Any) -> str | None:
    """What was expected of text that config.toml and checkpoints cannot hold: both are UTF-8."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if "\0" in text:
        return "text without NUL characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a name in UTF-8, as the run saves it; rename the file or folder, or give a symbolic link to it"
    return None


def written(value: Any) -> str:
    """A value for an error message. Python does not write whole numbers of more than 4,300 digits."""
    try:
        return shown(repr(value), 200)
    except ValueError:
        return "a number of thousands of digits"
