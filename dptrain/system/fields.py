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
import math
import re
import types
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from dptrain.system.text import shown

LARGEST = 2**63 - 1
MOST_ITEMS = 1 << 16  # in a list or object

T = TypeVar("T")


class Bounds(NamedTuple):
    """Limits of a whole number, both included."""

    least: int = 0
    most: int = LARGEST


class Text(NamedTuple):
    """Limits of a text: its length, a regular expression that matches all of it, and a name for what it describes."""

    longest: int = 1000
    pattern: str = ""
    name: str = ""


Sha256 = Annotated[str, Text(64, "[0-9a-f]{64}", "a SHA-256")]


def from_json(kind: type[T], raw: object, where: str = "", unknown: list[str] | None = None) -> T:
    """`raw` as a `kind`: a dataclass or one of the types below.

    int, float, str, bool, Literal, X | None, tuple[X, ...], tuple[X, Y], dict[str, X], and Any, which is not checked.
    `where` names the value in errors. Keys that a dataclass does not have are an error. If `unknown` is given, they are
    appended to it instead.
    """
    return _value(kind, raw, where, None, unknown)  # type: ignore[no-any-return]


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
    if origin is Literal:
        fits, expected = any(type(raw) is type(one) and raw == one for one in members), f"one of {members}"
    elif origin is tuple:
        fits, expected = isinstance(raw, list), "a list"
    elif origin is dict:
        fits, expected = isinstance(raw, dict), "a JSON object"
    else:
        fits, expected = _scalar(kind, raw, limits)
    if not fits:
        raise ValueError(f"{where} is {_short(raw)}, expected {expected}")
    if origin in (tuple, dict) and len(raw) > MOST_ITEMS:
        raise ValueError(f"{where} has {len(raw):,} items, expected at most {MOST_ITEMS:,}")
    if origin is dict:
        return {key: _value(members[1], one, _join(where, key), None, unknown) for key, one in raw.items()}
    if origin is tuple:
        kinds = [members[0]] * len(raw) if members[-1] is Ellipsis else members
        if len(kinds) != len(raw):
            raise ValueError(f"{where} has {len(raw):,} items, expected {len(kinds)}")
        pairs = enumerate(zip(kinds, raw, strict=True))
        return tuple(_value(member, one, f"{where}[{number}]", None, unknown) for number, (member, one) in pairs)
    return float(raw) if kind is float else raw


def _dataclass(kind: Any, raw: Any, where: str, unknown: list[str] | None) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'the file'} is {_short(raw)}, expected a JSON object")
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    missing = [
        name
        for name, field in fields.items()
        if name not in raw and field.default is field.default_factory is dataclasses.MISSING
    ]
    surplus = sorted(shown(key, 80) for key in set(raw) - set(fields))
    if missing or (surplus and unknown is None):
        found = [f"{what} {', '.join(keys[:9])}" for what, keys in (("missing", missing), ("unknown", surplus)) if keys]
        raise ValueError(f"the keys of {where or 'the file'}: {'; '.join(found)}; expected {', '.join(fields)}")
    if unknown is not None:
        unknown += [_join(where, key) for key in surplus]
    return kind(
        **{name: _value(hints[name], raw[name], _join(where, name), None, unknown) for name in fields if name in raw}
    )


def _scalar(kind: Any, raw: Any, limits: Any) -> tuple[bool, str]:
    """Whether `raw` is a value of this type, and what is expected in words."""
    if kind is int:
        least, most = limits or Bounds()
        return type(raw) is int and least <= raw <= most, f"a whole number from {least} to {most}"
    if kind is float:
        return type(raw) in (int, float) and math.isfinite(raw), "a finite number"
    if kind is str:
        longest, pattern, name = limits or Text()
        fits = isinstance(raw, str) and len(raw) <= longest and (not pattern or bool(re.fullmatch(pattern, raw)))
        return fits, name or f"text of at most {longest:,} characters"
    assert kind is bool, kind
    return type(raw) is bool, "true or false"


def _join(where: str, key: str) -> str:
    return f"{where}.{shown(key, 80)}" if where else shown(key, 80)


def _short(value: object) -> str:
    """A value in a few characters, however large it is."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,} items"
    return shown(repr(value[:100] if isinstance(value, str) else value), 80)
