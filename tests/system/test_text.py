"""dptrain.system.text: text from files is printed without an effect on the terminal, in a bounded length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.system.text import counted, shown, shown_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("Größe 猫 é", "Größe 猫 é"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # writes from right to left
        ("\udcff", "\\udcff"),  # a byte of a path that is not UTF-8
        ("\x9b31m", "\\x9b31m"),  # an escape sequence in one character
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(st.text(st.characters(codec=None)), st.integers(10, 100))
def test_shown_text_is_printable_and_within_the_length(text: str, longest: int) -> None:
    written = shown(text, longest)
    assert written.isprintable()
    written.encode()
    assert len(written) <= longest * len("\\U0010ffff")


def test_long_text_keeps_both_ends() -> None:
    assert shown("a" * 3000 + "b" * 3000, 25) == "a" * 10 + " ... " + "b" * 10


def test_line_breaks_are_kept_between_lines() -> None:
    assert shown_lines("one\n\x1b[2Jtwo\n") == "one\n\\x1b[2Jtwo\n"


def test_a_number_of_things_is_singular_or_plural() -> None:
    found = [counted(number, what) for number, what in ((1, "image"), (0, "image"), (1, "class"), (2000, "class"))]
    assert found == ["1 image", "0 images", "1 class", "2,000 classes"]
