"""Configuration keys: fields of dataclasses with a scope, a help text and bounds. They define flags and TOML keys."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any

from dptrain.errors import UsageError
from dptrain.system import files
from dptrain.system.suggestions import did_you_mean
from dptrain.system.text import shown

LIMIT = 2**63  # whole numbers are below it, as in TOML and HDF5
KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table"}
METAVARS = {int: "N", float: "X", str: "PATH", dict: "TOML"}
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
    `dotted` (the names of a table may have dots), `needs` (another key without which this one has no effect, and its
    value, or None for any but the default).
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


def check_needs(config: Config, flags: Mapping[str, Any]) -> None:
    """UsageError for a flag that has no effect in the configuration, as the key that it needs is not set."""
    for one in fields(config):
        if flags.get(one.name) and not has_effect(config, one.name):
            needed, value = one.metadata["needs"]
            other = flag(needed) if value is None else f"{flag(needed)} {value}"
            raise UsageError(f"{flag(one.name)} has no effect without {other}: add that, or leave it out")


def has_effect(config: Config, name: str) -> bool:
    """False for a key whose other key, stated by `needs`, has not the value that it needs."""
    keys = {one.name: one for one in fields(config)}
    if "needs" not in keys[name].metadata:
        return True
    needed, value = keys[name].metadata["needs"]
    found = getattr(config, needed)
    return bool(found != keys[needed].default if value is None else found == value)


def from_toml(key: Field[Any], value: Any, *, by_user: bool = False) -> Any:
    """The checked value of a key from a value in TOML; a whole number is accepted where a number is expected."""
    value = _typed_table(key, value)
    if type(value) is int and kind(key) in (float, str):
        value = kind(key)(value)
    check(key, value)
    return key.metadata["read"](value) if by_user and "read" in key.metadata and value != key.default else value


def from_text(key: Field[Any], text: str) -> Any:
    """The checked value of a key from the text of its flag; a table is the inside of an inline table in TOML."""
    name, value = flag(key.name), text
    try:
        text.encode()
        if kind(key) is dict:
            value = _typed_table(key, files.parse_toml(f"table = {{{text}}}")["table"])
        elif "read" in key.metadata:
            value = key.metadata["read"](text)
        elif kind(key) is not str:
            with contextlib.suppress(ValueError):
                value = kind(key)(text)
    except UnicodeEncodeError:
        raise UsageError(f"{name} is {shown(text)}, expected a name in UTF-8: rename the file or folder") from None
    except ValueError as error:
        example = f"{name} '{key.metadata['example']}'"
        raise UsageError(f"{name} {shown(repr(text), 200)}: not TOML ({error}); write for example {example}") from error
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    check(key, value)
    return value


def _typed_table(key: Field[Any], value: Any) -> Any:
    """A table as its key wants it: with `dotted`, `first.bias = 3` is the name "first.bias", not a table in a table."""
    return _with_dotted_names(value) if key.metadata.get("dotted") and isinstance(value, dict) else value


def _with_dotted_names(table: Mapping[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            names |= {f"{name}.{rest}": one for rest, one in _with_dotted_names(value).items()}
        else:
            names[name] = value
    return names


def add_flags_of(parser: argparse._ActionsContainer, keys: Iterable[Field[Any]], *, defaults: bool = False) -> None:
    """Add the flags of keys. A flag that is not given sets no attribute, or with `defaults` the key's default."""
    for key in keys:
        default = argparse.SUPPRESS if not defaults else {} if kind(key) is dict else key.default
        if key.name == "data":
            parser.add_argument(key.name, nargs="?", default=default, **_options(key))
        else:
            parser.add_argument(flag(key.name), default=default, **_options(key))


def _options(key: Field[Any]) -> dict[str, Any]:
    """The arguments of argparse's `add_argument`."""
    more, type_ = key.metadata, kind(key)
    text = more["help"] + (f", as TOML: '{more['example']}'" if "example" in more else "")
    if type_ is not dict and key.default is not False and key.default != "":
        default = "on" if key.default is True else key.default
        text = f"{text[:-1]}; default: {default})" if text.endswith(")") else f"{text} (default: {default})"
    help = {"help": text.replace("%", "%%")}
    if type_ is bool:
        return help | {"action": argparse.BooleanOptionalAction}
    metavar = "|".join(more["choices"]) if "choices" in more else more.get("metavar", METAVARS[type_])
    return help | {"type": functools.partial(from_text, key), "metavar": metavar}
