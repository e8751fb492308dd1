"""Values from a JSON file, each of the kind and within the bounds that are expected; ValueError otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from dptrain.system.text import shown

LONGEST_NAME = 1000  # characters of a name
MOST_ITEMS = 1 << 16  # of a list
LARGEST = 2**63 - 1


class Fields:
    """One JSON object of a file; `where` names it in errors, such as "splits.train[3]". No value is ever converted."""

    def __init__(self, raw: object, where: str = "") -> None:
        if not isinstance(raw, dict):
            raise ValueError(f"{where or 'the whole'} is {_short(raw)}, expected a JSON object")
        self.raw, self.where = raw, where

    def unknown(self, known: Iterable[str]) -> list[str]:
        """Its keys that are not among those known, in order, shown safely."""
        return sorted(shown(key, 80) for key in set(self.raw) - set(known))

    def only(self, known: Iterable[str]) -> Fields:
        """Itself; ValueError unless its keys are exactly those."""
        known = list(known)
        missing, surplus = sorted(set(known) - set(self.raw)), self.unknown(known)
        if missing or surplus:
            found = [f"{what} {', '.join(keys[:9])}" for what, keys in (("no", missing), ("surplus", surplus)) if keys]
            raise ValueError(f"{self._name('keys')}: {'; '.join(found)}; expected {', '.join(sorted(known))}")
        return self

    def text(self, key: str, longest: int = LONGEST_NAME) -> str:
        found: str = self._one(key, lambda value: isinstance(value, str) and len(value) <= longest, _text(longest))
        return found

    def whole(self, key: str, least: int = 0, most: int = LARGEST) -> int:
        expected = f"a whole number from {least} to {most}"
        found: int = self._one(key, lambda value: _is_whole(value, least, most), expected)
        return found

    def number(self, key: str) -> float:
        return float(self._one(key, _is_number, "a finite number"))

    def choice(self, key: str, *values: object) -> Any:
        """A value that is one of these, and of the same type: 1 is not True."""
        same = ((type(value), value) for value in values)
        return self._one(key, lambda value: (type(value), value) in same, f"one of {values}")

    def sha256(self, key: str) -> str:
        """64 hexadecimal digits in lower case."""
        if len(digits := self.text(key)) != 64 or set(digits) - set("0123456789abcdef"):
            raise ValueError(f"{self._name(key)} is {_short(digits)}, expected a SHA-256")
        return digits

    def texts(self, key: str, longest: int = LONGEST_NAME) -> tuple[str, ...]:
        return self._many(key, lambda value: isinstance(value, str) and len(value) <= longest, _text(longest))

    def wholes(self, key: str, least: int = 0, most: int = LARGEST) -> tuple[int, ...]:
        return self._many(key, lambda value: _is_whole(value, least, most), f"a whole number from {least} to {most}")

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(map(float, self._many(key, _is_number, "a finite number")))

    def fields(self, key: str) -> Fields:
        """A JSON object."""
        return Fields(self._one(key, lambda value: isinstance(value, dict), "a JSON object"), self._name(key))

    def list_of_fields(self, key: str) -> list[Fields]:
        """A list of JSON objects."""
        members = self._many(key, lambda value: isinstance(value, dict), "a JSON object")
        return [Fields(member, f"{self._name(key)}[{number}]") for number, member in enumerate(members)]

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _one(self, key: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if key not in self.raw:
            raise ValueError(f"{self._name(key)} is missing")
        if not fits(self.raw[key]):
            raise ValueError(f"{self._name(key)} is {_short(self.raw[key])}, expected {expected}")
        return self.raw[key]

    def _many(self, key: str, fits: Callable[[Any], bool], expected: str) -> tuple[Any, ...]:
        members = self._one(key, lambda value: isinstance(value, list), "a list")
        if len(members) > MOST_ITEMS:
            raise ValueError(f"{self._name(key)} has {len(members):,} items, expected at most {MOST_ITEMS:,}")
        for number, member in enumerate(members):
            if not fits(member):
                raise ValueError(f"{self._name(key)}[{number}] is {_short(member)}, expected {expected}")
        return tuple(members)


def _text(longest: int) -> str:
    return f"text of at most {longest:,} characters"


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _short(value: object) -> str:
    """A value in words that are short however large it is."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,} items"
    return shown(repr(value[:100] if isinstance(value, str) else value), 80)
