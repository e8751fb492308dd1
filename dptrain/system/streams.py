"""Standard input, output and error behave in the same way for a terminal, a pipe, a file and a closed stream.

    prepare_streams()           # first of all, in every program
    drop_failed_writes()        # for a program whose work must not end when its output fails, such as training

A write fails if the stream is closed (`>&-`), the disk is full, or the terminal or reader is gone. It then raises
OutputError, or ReaderGoneError if the reader is gone. After `drop_failed_writes` the text is lost and the program
continues. Standard error always drops failed writes, as nobody could read the error. Text that may be lost waits
PATIENCE at most for the reader of a non-blocking pipe. A character that the encoding does not have is written as an
escape.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any

from dptrain.errors import OutputError, ReaderGoneError

PATIENCE = 1.0  # seconds to wait for a reader before text that may be lost is dropped


class Descriptor(io.FileIO):
    """A file descriptor to write to. `drops`: text that cannot be written is lost, and `lost` is set."""

    def __init__(self, number: int, name: str, *, drops: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.what, self.drops, self.lost = name, drops, False
        self.prefix, self.ends_line = (
            b"",
            True,
        )  # written before any text; whether the last text ended with a line break
        self._slow = False  # the reader did not read within PATIENCE, so the next write does not wait

    def write(self, content: Any, /) -> int:
        """Write all of `content`, which is bytes or a buffer; returns its length."""
        left = memoryview(content).cast("B")
        length = len(left)
        if length:
            self.ends_line = left[-1] == ord("\n")
            left = memoryview(self.prefix + left.tobytes()) if self.prefix else left
        try:
            while left:
                written = super().write(left)  # typeshed: an int; None where the descriptor would block
                if written is None:
                    self._wait_for_reader()
                else:
                    left, self._slow = left[written:], False
        except OSError as error:
            self.lost = True
            if not self.drops:
                kind = ReaderGoneError if error.errno == errno.EPIPE else OutputError
                raise kind(f"{self.what} cannot be written: {error.strerror}") from None
        return length

    def _wait_for_reader(self) -> None:
        """Wait until a non-blocking descriptor can be written; without a limit where nothing may be lost."""
        ready = select.poll()
        ready.register(self.fileno(), select.POLLOUT)
        milliseconds = (0 if self._slow else 1000 * PATIENCE) if self.drops else None
        if not ready.poll(milliseconds):
            self._slow = True
            raise BlockingIOError(errno.EAGAIN, "the reader does not read")


# Set by Jupyter, Kaggle and Colab for their kernels, and inherited by processes that a kernel starts.
NOTEBOOK_VARIABLES = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG")
_descriptors: dict[str, Descriptor] = {}  # of sys.stdout and sys.stderr, by these names


def prepare_streams() -> None:
    """Open descriptors 0, 1 and 2 where they are closed, and replace sys.stdout and sys.stderr.

    Otherwise the next file to be opened would get such a number, and a library that prints would write into that file.
    Streams that a test or a notebook has replaced are kept. May be called twice.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # opened for reading, so that writing fails as it does to a closed descriptor
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # it gets the lowest free number
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    for number, name, what in ((1, "stdout", "standard output"), (2, "stderr", "standard error")):
        if name not in _descriptors and getattr(sys, name) is getattr(sys, f"__{name}__"):
            _descriptors[name] = Descriptor(number, what, drops=name == "stderr")
            _replace(name, _descriptors[name])


def _replace(name: str, descriptor: Descriptor) -> None:
    """Replace a stream by one with the same encoding and buffering that writes to `descriptor`."""
    before = getattr(sys, name)
    unbuffered, lines, encoding = False, name == "stderr", "utf-8"
    if isinstance(before, io.TextIOWrapper):  # not closed
        unbuffered, lines, encoding = before.write_through, before.line_buffering, before.encoding
        with contextlib.suppress(OSError):
            before.flush()
    stream = io.TextIOWrapper(
        descriptor if unbuffered else io.BufferedWriter(descriptor),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=lines,
        write_through=unbuffered,
    )
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def drop_failed_writes() -> None:
    """From now on, text that cannot be written to standard output is lost, and no write fails."""
    for descriptor in _descriptors.values():
        descriptor.drops = True


def print_whole(text: str) -> bool:
    """Print a line on standard output; False where part of it was lost."""
    descriptor = _descriptors.get("stdout")
    if descriptor is not None:
        descriptor.lost = False
    print(text, flush=True)
    return descriptor is None or not descriptor.lost


def erase_before_text(sequence: str) -> None:
    """Write this escape sequence before any text on standard output, and on standard error if it is on that terminal.

    It removes what a live view has drawn there. Workers that are forked later do the same. "": no longer.
    """
    out, error = _descriptors.get("stdout"), _descriptors.get("stderr")
    if out is not None:
        out.prefix = sequence.encode("ascii")
        if error is not None and (not sequence or same_terminal()):
            error.prefix = out.prefix


def same_terminal() -> bool:
    """Whether standard output and standard error are one terminal."""
    return os.isatty(1) and os.isatty(2) and os.fstat(1).st_rdev == os.fstat(2).st_rdev


def incomplete_line() -> bool:
    """Whether text without a line break at its end was written last."""
    return not all(descriptor.ends_line for descriptor in _descriptors.values())


def finish_output() -> None:
    """Flush standard output, before the exit status is decided. After an OutputError the text is dropped."""
    try:
        sys.stdout.flush()
    except OutputError:
        drop_failed_writes()
        raise


def in_notebook() -> bool:
    """Whether a notebook started this process; it saves everything that a command prints in its file."""
    return "ipykernel" in sys.modules or any(variable in os.environ for variable in NOTEBOOK_VARIABLES)


def on_dumb_terminal() -> bool:
    """Whether the terminal has no cursor that can be moved, such as a shell within Emacs."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def write_to_stderr(line: str) -> None:
    """Write a line to standard error in one piece, as other ranks and mpirun write there too; lost if it fails."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
