"""Text from files and command lines, made safe for a terminal and for a line of bounded length."""

from __future__ import annotations

LONGEST = 2000  # characters of one message


def shown(text: object, longest: int = LONGEST) -> str:
    """`str(text)` with escapes for control characters and others that cannot be printed.

    Escape sequences, line breaks and marks that reverse the writing direction become \\x1b, \\n, \\u202e. Letters of
    all scripts, and \\ itself, stay. Text of more than `longest` characters loses its middle.
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


def counted(number: int, what: str) -> str:
    """A number of things: 1 image, 2 images, 2 classes."""
    plural = "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{plural * (number != 1)}"


def shown_lines(text: object, longest: int = LONGEST) -> str:
    """As `shown`, but with line breaks, for tracebacks; a line has at most `longest` characters."""
    return "\n".join(shown(line, longest) for line in str(text).split("\n"))
