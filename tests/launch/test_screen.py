"""launch.screen: lines of the launcher and of ranks are not cut or overwritten by a progress bar."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from launch_runs import CHECKOUT

FRAME = "\r\x1b[2K\x1b[1A\x1b[2K"


def on_terminal(code: str, *, errors_elsewhere: bool = False) -> str:
    here, there = pty.openpty()
    program = f"from launch.screen import SCREEN, say\n{code}"
    errors = subprocess.DEVNULL if errors_elsewhere else there
    with subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT, stdout=there, stderr=errors) as process:
        os.close(there)
        written = b""
        try:
            while chunk := os.read(here, 65536):
                written += chunk
        except OSError:  # Linux's way of saying that the other end is closed
            pass
        os.close(here)
    assert process.returncode == 0
    return written.decode().replace("\r\n", "\n")


def shown(written: str) -> list[str]:
    """The lines of a terminal that knows what is used here: erasing a line, and moving up."""
    lines, row = [""], 0
    for part in written.replace("\r", "").replace("\n", "\x1b\n\x1b").split("\x1b"):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.startswith("[1A"):
            row, lines = row - 1, lines
            lines[row] += part[3:]
        elif part.startswith("[2K"):
            lines[row] = part[3:]
        elif part.startswith("[?25"):
            lines[row] += part[5:]
        else:
            lines[row] += part
    while lines and not lines[-1]:
        lines.pop()
    return lines


BAR = "SCREEN.out(b'\\x1b[?25lbar 1\\n')\n"
NEXT = f"SCREEN.out({FRAME.encode()!r} + b'bar 2\\n')\n"


def test_a_line_is_printed_above_the_bar() -> None:
    """Found in the field: the lines that name the run folder were cut or overwritten by the bar."""
    assert shown(on_terminal(f"{BAR}say('a line')\n{NEXT}")) == ["launch: a line", "bar 2"]
    assert shown(on_terminal(f"{BAR}SCREEN.error(b'one\\ntwo\\n')\n{NEXT}")) == ["one", "two", "bar 2"]


@pytest.mark.parametrize("code", ["", BAR + "SCREEN.out(b'\\x1b[?25h')\n"], ids=["no bar", "ended bar"])
def test_without_a_bar_bytes_are_written_as_they_are(code: str) -> None:
    assert on_terminal(f"{code}SCREEN.error(b'text')").endswith("text")
    assert FRAME not in on_terminal(f"{code}SCREEN.error(b'text\\n')")


def test_errors_that_go_elsewhere_do_not_move_the_bar() -> None:
    assert on_terminal(f"{BAR}say('a line')", errors_elsewhere=True) == "\x1b[?25lbar 1\n"


def test_a_bar_that_dead_ranks_have_left_is_removed_and_the_cursor_shown() -> None:
    written = on_terminal(f"{BAR}SCREEN.end_bar()\nsay('the end')")
    assert shown(written) == ["launch: the end"]
    assert "\x1b[?25h" in written
