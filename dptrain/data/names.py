"""Names of a data set and its classes: what a checkpoint can hold, and a reader can tell apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dptrain.errors import DataError
from dptrain.system.text import shown

LONGEST_NAME = 200  # characters
REFUSED = {  # by Unicode category; HDF5 holds neither NUL nor a lone surrogate
    "Cc": "a control character",
    "Cs": "a lone surrogate (bytes that are not UTF-8)",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


def check_names(name: object, classes: Sequence[object]) -> None:
    """DataError unless these can be the names of a data set and of its classes.

    Two classes have different names, also after Unicode normalisation: names that print alike are one name. Names
    that differ in case are different, as the letters a and A are different classes.
    """
    _check("the name of the data set", name)
    if isinstance(classes, str) or not classes:
        raise DataError(f"classes are {shown(repr(classes), 60)}, expected a list of one or more names")
    first_with: dict[str, int] = {}
    for number, label in enumerate(classes):
        text = _check(f"the name of class {number}", label)
        first = first_with.setdefault(unicodedata.normalize("NFC", text), number)
        if first != number:
            raise DataError(f"classes {first} and {number} have the same name, {shown(text)!r}; give each its own")


def _check(what: str, name: object) -> str:
    """The name, when it is a text that can be one."""
    if not isinstance(name, str):
        raise DataError(f"{what} is {shown(repr(name), 60)}, expected a text")
    if not name.strip() or name != name.strip():
        raise DataError(f"{what} is {shown(repr(name), 60)}, expected a text without spaces at its ends")
    if len(name) > LONGEST_NAME:
        raise DataError(f"{what} has {len(name):,} characters, expected at most {LONGEST_NAME}: {shown(name, 60)!r}")
    for character in name:
        if (category := unicodedata.category(character)) in REFUSED:
            raise DataError(f"{what} is {shown(repr(name), 260)}, which contains {REFUSED[category]}; choose another")
    return name
