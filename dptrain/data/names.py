"""Rules for the names of a data set and of its classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dptrain.errors import DataError
from dptrain.system.text import shown

LONGEST_NAME = 200  # characters
REFUSED = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories; HDF5 cannot hold NUL or a lone surrogate


def check_names(name: object, classes: Sequence[object]) -> None:
    """DataError unless these are valid names of a data set and of its classes.

    Class names must differ after Unicode normalisation, because normalised names look the same. Names may differ in
    case only: the letters a and A may be two classes.
    """
    if isinstance(classes, str) or not classes:
        raise DataError(f"classes are {shown(repr(classes), 60)}, expected a list of one or more names")
    for what, text in (("the data set", name), *((f"class {number}", text) for number, text in enumerate(classes))):
        if not isinstance(text, str) or not _is_name(text):
            raise DataError(
                f"the name of {what} is {shown(repr(text), 260)}, expected text of 1 to {LONGEST_NAME} characters "
                "without control characters, line separators, lone surrogates, and spaces at the beginning or end"
            )
    first_with: dict[str, int] = {}
    for number, text in enumerate(classes):
        first = first_with.setdefault(unicodedata.normalize("NFC", str(text)), number)
        if first != number:
            raise DataError(f"classes {first} and {number} have the same name, {shown(text)!r}; rename one")


def _is_name(text: str) -> bool:
    one_line = not any(unicodedata.category(character) in REFUSED for character in text[:LONGEST_NAME])
    return one_line and 0 < len(text) <= LONGEST_NAME and text == text.strip()
