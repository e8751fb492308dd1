"""What a program reports about an exception: one line for people and an exit status."""

from __future__ import annotations

import signal
import traceback

from dptrain.errors import UNFORESEEN, DptrainError, ReaderGoneError
from dptrain.system.limits import refused
from dptrain.system.signals import EndedBySignal
from dptrain.system.text import shown, shown_lines


def failure(error: BaseException) -> tuple[str, int]:
    """The text to report and the exit status; the text is empty where the reader of the output has gone.

    The text is one line; an unforeseen exception has its traceback below.
    """
    if isinstance(error, ReaderGoneError):
        return "", error.status
    if isinstance(error, KeyboardInterrupt):
        status = error.status if isinstance(error, EndedBySignal) else 128 + signal.SIGINT
        return ": ".join(["interrupted", *map(shown, error.args)]), status
    known = error if isinstance(error, DptrainError) else refused(error)
    if known is not None:
        return shown(known) + shown_lines(known.details), known.status
    what = traceback.format_exception_only(error)[-1].strip()
    return f"failed: {shown(what)}\n{shown_lines(''.join(traceback.format_exception(error)))}", UNFORESEEN
