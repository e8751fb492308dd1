"""Values of parsed JSON, checked against the type hints of a dataclass; ValueError otherwise. No value is converted.

@dataclass(frozen=True)
class Entry:
    file: str                                   # at most 1,000 characters
    samples: Annotated[int, Bounds(1)]          # without Bounds: 0 to 2^63 - 1
    mean: tuple[float, ...]                     # finite numbers
    sha256: Sha256 | None = None                # a field with a default value may be missing

entry = from_json(Entry, raw, "splits.train[3]")
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from dptrain.system.text import shown

MOST_ITEMS = 1 << 16  # in a list or object

T = TypeVar("T")


class Bounds(NamedTuple):
    """Limits of a whole number, both included."""

    least: int = 0
    most: int = 2**63 - 1


class Text(NamedTuple):
    """Limits of a text: its length, a regular expression that matches all of it, and a name for what it describes."""

    longest: int = 1000
    pattern: str = ".*"
    name: str = ""


Sha256 = Annotated[str, Text(64, "[0-9a-f]{64}", "a SHA-256")]


def from_json(kind: type[T], raw: object, where: str = "", unknown: list[str] | None = None) -> T:
    """`raw` as a `kind`: a dataclass or one of the types below.

    int, float, str, bool, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], and Any, which is not checked.
    `where` names the value in errors. Keys that a dataclass does not have are an error. If `unknown` is given, they are
    appended to it instead.
    """
    value: T = _value(kind, raw, where, None, unknown)
    return value


def _value(kind: Any, raw: Any, where: str, limits: Any, unknown: list[str] | None) -> Any:
    origin, members = get_origin(kind), get_args(kind)
    if kind is Any:
        return raw
    if origin is Annotated:
        return _value(members[0], raw, where, members[1], unknown)
    if origin in (Union, types.UnionType):  # X | None
        return None if raw is None else _value(members[0], raw, where, limits, unknown)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, raw, where, unknown)
    if origin in (dict, tuple):
        container, name = (dict, "an object") if origin is dict else (list, "a list")
        sized = isinstance(raw, container) and len(raw) <= MOST_ITEMS
        _expect(sized, raw, where, f"{name} of at most {MOST_ITEMS:,} items")
    if origin is dict:
        return {key: _value(members[1], one, _join(where, key), None, unknown) for key, one in raw.items()}
    if origin is tuple:
        kinds = [members[0]] * len(raw) if members[-1] is Ellipsis else members
        if len(kinds) != len(raw):
            raise ValueError(f"{where} has {len(raw):,} items, expected {len(kinds)}")
        pairs = enumerate(zip(kinds, raw, strict=True))
        return tuple(_value(member, one, f"{where}[{number}]", None, unknown) for number, (member, one) in pairs)
    if origin is Literal:
        _expect(any(type(raw) is type(one) and raw == one for one in members), raw, where, f"one of {members}")
    elif kind is int:
        least, most = limits or Bounds()
        _expect(type(raw) is int and least <= raw <= most, raw, where, f"a whole number from {least} to {most}")
    elif kind is float:
        _expect(type(raw) in (int, float) and abs(raw) <= sys.float_info.max, raw, where, "a finite number")
        return float(raw)
    elif kind is str:
        longest, pattern, name = limits or Text()
        fits = isinstance(raw, str) and len(raw) <= longest and re.fullmatch(pattern, raw, re.DOTALL)
        _expect(fits, raw, where, name or f"text of at most {longest:,} characters")
    else:
        _expect(type(raw) is kind, raw, where, "true or false")
    return raw


def _dataclass(kind: Any, raw: Any, where: str, unknown: list[str] | None) -> Any:
    _expect(isinstance(raw, dict), raw, where or "the file", "a JSON object")
    hints = get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    needed = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in raw]
    surplus = sorted(shown(key, 80) for key in set(raw) - set(hints))
    if unknown is not None:
        unknown += [_join(where, key) for key in surplus]
        surplus = []
    if missing or surplus:
        found = [f"{what} {', '.join(keys[:9])}" for what, keys in (("missing", missing), ("unknown", surplus)) if keys]
        raise ValueError(f"the keys of {where or 'the file'}: {'; '.join(found)}; expected {', '.join(hints)}")
    given = {name: hint for name, hint in hints.items() if name in raw}
    return kind(**{name: _value(hint, raw[name], _join(where, name), None, unknown) for name, hint in given.items()})


def _expect(fits: object, raw: object, where: str, expected: str) -> None:
    if not fits:
        if isinstance(raw, dict | list):
            raise ValueError(f"{where} is a {type(raw).__name__} of {len(raw):,} items, expected {expected}")
        raise ValueError(f"{where} is {shown(repr(raw), 80)}, expected {expected}")


def _join(where: str, key: str) -> str:
    return f"{where}.{shown(key, 80)}" if where else shown(key, 80)
