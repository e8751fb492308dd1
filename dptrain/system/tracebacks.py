"""Tracebacks of errors in a user's code, without the frames of this program."""

from __future__ import annotations

import traceback
from pathlib import Path

from dptrain.system.text import shown, shown_lines

PROGRAM = str(Path(__file__).resolve().parent.parent)
MOST_LINES = 60


def user_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, from the first frame of the user's code; "" without such a frame.

    At most 60 lines, made safe for a terminal.
    """
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    if frames is None and not (isinstance(error, SyntaxError) and error.filename):
        return ""
    lines = "".join(traceback.format_exception(type(error), error, frames)).rstrip().split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 2], "  ...", *lines[-MOST_LINES // 2 :]]
    return shown_lines("\n".join(lines))


def last_line(error: BaseException) -> str:
    """The error's type and text on one line, made safe for a terminal, and its place in the user's code."""
    return shown(" ".join(traceback.format_exception_only(error)[-1].split()), 600) + place(error)


def place(error: BaseException) -> str:
    """Where in the user's code an error was raised, " (FILE, line N)"; "" if it was raised elsewhere."""
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename).name}, line {error.lineno})" if error.filename else ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _is_ours(filename: str) -> bool:
    return filename.startswith((PROGRAM + "/", "<frozen importlib"))
