"""Text from files and command lines, made safe for a terminal and for a line of bounded length."""

from __future__ import annotations

LONGEST = 2000  # characters of one message


def shown(text: object, longest: int = LONGEST) -> str:
    """`str(text)` with every character that a terminal may act on, or cannot print, written as an escape.

    Escape sequences, line breaks and marks that reverse the direction of writing become \\x1b, \\n, \\u202e. Letters of
    all scripts, and \\ itself, stay. What is longer than `longest` characters loses its middle.
    """
    written = str(text)
    if len(written) > longest:
        half = (longest - 5) // 2
        written = f"{written[:half]} ... {written[-half:]}"
    if written.isprintable():
        return written
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode() for one in written
    )


def shown_lines(text: object, longest: int = LONGEST) -> str:
    """As `shown`, but line breaks stay; for tracebacks and other text of several lines, `longest` characters a line."""
    return "\n".join(shown(line, longest) for line in str(text).split("\n"))
