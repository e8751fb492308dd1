"""dptrain.system.streams: what a program does when its output cannot be written."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dptrain.system.streams import Descriptor

# The program's own standard error may be missing: it reports through a file.
PROGRAM = """
import os, sys
from dptrain.system.start import start_program
from dptrain.system.streams import drop_failed_writes, finish_output, print_whole
report = os.open({report!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(report, 100)
os.close(report)
report_to_test = lambda text: os.write(100, str(text).encode())
start_program()
{body}
"""


def run(body: str, folder: Path, *, redirect: str = "", flags: Sequence[str] = (), **options: Any) -> tuple[int, str]:
    """The status of a program whose streams a shell has redirected, and what it reported."""
    report = folder / "report"
    (folder / "program.py").write_text(PROGRAM.format(report=str(report), body=body), encoding="utf-8")
    words = " ".join([sys.executable, *flags, str(folder / "program.py"), redirect])
    done = subprocess.run(["bash", "-c", words], check=False, timeout=60, **options)
    return done.returncode, report.read_text()


UNWRITABLE = [">/dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "| exit", ">/dev/full 2>/dev/full"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("redirect", UNWRITABLE)
def test_a_program_that_drops_failed_writes_continues(redirect: str, flags: Sequence[str], tmp_path: Path) -> None:
    """Found in the field: a full disk or a closed terminal ended the training, at the latest in Python's last flush."""
    body = """drop_failed_writes()
for stream in (sys.stdout, sys.stderr):
    print("x" * 100_000, file=stream, flush=True)
    print("held back", file=stream)
child = os.fork()
print("in a forked worker", flush=True)
if child: report_to_test(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    if redirect == "| exit":
        redirect = '| exit; exit "${PIPESTATUS[0]}"'
        body = "import time; time.sleep(0.2)\n" + body
    assert run(body, tmp_path, redirect=redirect, flags=flags) == (0, "0")


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("redirect", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_failed_write_of_a_result_is_one_error(
    redirect: str, reason: str, flags: Sequence[str], tmp_path: Path
) -> None:
    body = """try:
    print("the product")
    finish_output()
except Exception as error:
    report_to_test(f"{type(error).__name__}: {error}")"""
    expected = f"OutputError: standard output cannot be written: {reason}"
    assert run(body, tmp_path, redirect=redirect, flags=flags)[1] == expected


def test_the_number_of_a_closed_stream_is_not_used_for_the_next_file(tmp_path: Path) -> None:
    """Found in the field: with `>&-` the next file gets descriptor 1, and MPI and C libraries print into it."""
    body = """drop_failed_writes()
file = open("mine", "w")
os.write(file.fileno(), b"data")
for number in (0, 1, 2):
    try: os.write(number, b"noise of a library")
    except OSError: pass
report_to_test(repr(sys.stdin.read()))"""
    assert run(body, tmp_path, redirect="<&- >&- 2>&-", cwd=tmp_path) == (0, "''")
    assert (tmp_path / "mine").read_text() == "data"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_character_that_the_encoding_does_not_have_is_an_escape(encoding: str, tmp_path: Path) -> None:
    body = r"""for stream in (sys.stdout, sys.stderr): print("\u20ac \udcff", file=stream)"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    (tmp_path / "program.py").write_text(PROGRAM.format(report=str(tmp_path / "report"), body=body))
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, env=environment, check=False)
    euro = "€".encode() if encoding == "utf-8" else rb"\u20ac"
    assert (done.returncode, done.stdout, done.stderr) == (0, euro + b" \\udcff\n", euro + b" \\udcff\n")


def test_print_whole_reports_whether_the_line_was_written(tmp_path: Path) -> None:
    body = "drop_failed_writes()\nreport_to_test(print_whole('figures'))"
    assert run(body, tmp_path, redirect=">/dev/full") == (0, "False")
    assert run(body, tmp_path, redirect=">/dev/null") == (0, "True")


def test_a_terminal_closed_while_the_program_prints(tmp_path: Path) -> None:
    """Found in the field: `cmd & disown`, then exit: EIO."""
    body = """drop_failed_writes()
print("ready", flush=True)
sys.stdin.readline()
print("after", flush=True)
report_to_test("continued")"""
    (tmp_path / "program.py").write_text(PROGRAM.format(report=str(tmp_path / "report"), body=body))
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stdin=subprocess.PIPE, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        assert b"ready" in os.read(master, 100)
        os.close(master)
        process.communicate(b"\n", timeout=30)
    assert (process.returncode, (tmp_path / "report").read_text()) == (0, "continued")


def test_a_non_blocking_pipe_receives_everything_if_it_is_read() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    content = os.urandom(300_000)
    with subprocess.Popen(["sha256sum"], stdin=reading, stdout=subprocess.PIPE) as reader:
        os.close(reading)
        for drops in (False, True):
            assert Descriptor(writing, "a pipe", drops=drops).write(content) == len(content)
        os.close(writing)
        assert reader.stdout is not None
        assert reader.stdout.read().split()[0].decode() == hashlib.sha256(2 * content).hexdigest()


def test_a_non_blocking_pipe_that_is_not_read_loses_text_instead_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dptrain.system.streams.PATIENCE", 0.05)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    descriptor = Descriptor(writing, "a pipe", drops=True)
    started = time.monotonic()
    for _ in range(100):
        descriptor.write(b"x" * 10_000)
    assert descriptor.lost
    assert time.monotonic() - started < 2  # waited once, not for each write
    os.read(reading, 1 << 20)
    descriptor.lost = False
    descriptor.write(b"read again")
    assert not descriptor.lost
    assert os.read(reading, 100) == b"read again"
    os.close(reading)
    os.close(writing)
