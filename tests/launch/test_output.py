"""launch.output: the output of a job without mpirun's notices, and a live view on the same terminal."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import CHECKOUT, LOOP, OPEN_MPI, start_launch
from terminals import Terminal

from launch.output import Relay
from launch.targets.mpich import MPICH
from launch.targets.openmpi import OpenMPI
from launch.targets.target import Target


def relayed(*chunks: bytes, pause: float = 0.02, target: type[Target] = OpenMPI) -> tuple[Relay, bytes]:
    """A relay that has received these chunks one by one, and its output."""
    source, sink = os.pipe()
    passed: list[bytes] = []
    relay = Relay(os.fdopen(source, "rb", buffering=0), passed.append, target.notices)
    relay.start()
    for chunk in chunks:
        os.write(sink, chunk)
        time.sleep(pause)  # so that two chunks are not read as one
    os.close(sink)
    relay.finish()
    return relay, b"".join(passed)


def test_every_byte_is_passed_on() -> None:
    chunks = [b"\xff\x00\r\n", os.urandom(30_000), b"no newline at the end", b"\n---", b"=" * 80]
    assert relayed(*chunks)[1] == b"".join(chunks)


def filtered(target: type[Target], text: bytes, size: int) -> bytes:
    """The output for a text that arrives in chunks of this size."""
    passed: list[bytes] = []
    relay = Relay(io.BytesIO(), passed.append, target.notices)
    for at in range(0, len(text), size):
        relay.take(text[at : at + size])
    relay.release()
    return b"".join(passed)


RULE, DOUBLE = b"-" * 74 + b"\n", b"=" * 83 + b"\n"
BAD_END = DOUBLE + b"=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\n" + DOUBLE
BAD_END += (
    b"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\nPlease see the FAQ page for debugging "
)
BAD_END += b"suggestions\n"


@pytest.mark.parametrize(
    ("target", "notice"),
    [
        (OpenMPI, RULE + b"prterun noticed that process rank 1 with PID 3 on node vm exited on\nsignal 9.\n" + RULE),
        (OpenMPI, RULE + b"MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\n\nNOTE: ...\n" + RULE),
        (OpenMPI, b"\0" + RULE + b"prterun has exited due to process rank 1 with PID 3 on node vm exiting\n" + RULE),
        (OpenMPI, b"[vm:12345] PMIX ERROR: PMIX_ERR_UNREACH in file x.c at line 5\n"),
        (MPICH, BAD_END),
        (MPICH, b"[proxy:0@vm] HYD_pmcd_pmip_control_cmd_cb (pm/pmiserv/pmip_cb.c:480): assert (!closed) failed\n"),
        (MPICH, b"Abort(75) on node 0 (rank 0 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 75)\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 100, 10_000])
def test_a_notice_of_mpirun_is_left_out(target: type[Target], notice: bytes, size: int) -> None:
    assert filtered(target, b"before\n" + notice + b"after", size) == b"before\nafter"


@pytest.mark.parametrize(
    "text",
    [
        RULE + b"a table\n" + RULE + b"of the user\n" + RULE,
        RULE + b"never closed\n" + b"a line\n" * 1300,
        DOUBLE + b"a heading\n" + DOUBLE,
        b"\n\n\nA line\n\n",
        b"[1/10] done",
        b"a line that has [vm:1] PMIX ERROR: within\n",
        b"\r\x1b[2K\x1b[1A\x1b[2Kstep 5\n",
    ],
)
@pytest.mark.parametrize("size", [50, 10_000])
@pytest.mark.parametrize("target", [OpenMPI, MPICH])
def test_other_text_is_passed_on(target: type[Target], text: bytes, size: int) -> None:
    assert filtered(target, text, size) == text


def test_an_incomplete_line_is_shown_when_nothing_follows() -> None:
    """A question must be visible before its answer, also after a rule."""
    source, sink = os.pipe()
    passed: list[bytes] = []
    relay = Relay(os.fdopen(source, "rb", buffering=0), passed.append, OpenMPI.notices)
    relay.start()
    os.write(sink, RULE + b"Name: d")
    deadline = time.monotonic() + 5
    while b"".join(passed) != RULE + b"Name: d":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(sink)
    relay.finish()


def test_a_line_of_a_running_job_is_seen_at_once(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, f"trap 'exit 0' TERM; echo a line >&2; {LOOP}")
    with start_launch("-n", "1", "--mpirun", mpirun, "--", "eval", "data") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "a line\n"
        assert process.poll() is None
        process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["sleep 20", "yes"], ids=["silent", "writing"])
def test_a_process_that_has_left_the_job_and_keeps_the_stream_open_does_not_delay_the_end(
    fake_mpirun: Callable[..., str], program: str
) -> None:
    """A process with an empty environment is not found."""
    job = f"env -i PATH=$PATH timeout 20 {program} >&2 & echo $!; echo the tail >&2; exit 3"
    started = time.monotonic()
    process = start_launch("-n", "1", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "train", "data")
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    with contextlib.suppress(ProcessLookupError):  # `yes` ends when nobody reads
        os.kill(int(output), signal.SIGTERM)
    assert process.returncode == 3
    assert "the tail\n" in errors


def on_terminal(code: str, *, errors: str = "") -> Terminal:
    """The terminal after a program that uses SCREEN, whose standard error may be redirected."""
    program = f"from launch.output import SCREEN, report\n{code}"
    terminal = Terminal(["bash", "-c", f'"$@" {errors}', "bash", sys.executable, "-c", program], CHECKOUT, rows=12)
    with terminal:
        assert terminal.finish() == 0, terminal.lines
    return terminal


def frame(number: int) -> str:
    """The code that prints a frame of two lines, as rank 0 does."""
    return f"SCREEN.out(b'\\r\\x1b[J\\r\\nbar {number}\\r\\nfigures {number}\\x1b[3A\\r\\n')\n"


START = "SCREEN.out(b'the run\\n')\n" + frame(1)
END = "SCREEN.out(b'\\r\\x1b[J')\n"


def test_lines_are_printed_above_the_next_frame() -> None:
    """Found in the field: the lines that name the run folder were cut or overwritten by the bar."""
    for text in ("report('one')\nreport('two')\n", "SCREEN.out(b'launch: one\\n')\nSCREEN.out(b'launch: two\\n')\n"):
        assert on_terminal(START + text).lines == ["the run", "launch: one", "launch: two"]
        again = on_terminal(START + text + frame(2)).lines
        assert again == ["the run", "launch: one", "launch: two", "", "bar 2", "figures 2"]


def test_frames_replace_each_other_and_the_last_one_is_removed() -> None:
    assert on_terminal(START + frame(2) + frame(3)).lines == ["the run", "", "bar 3", "figures 3"]
    assert on_terminal(START + frame(2) + END + "SCREEN.out(b'the end\\n')").lines == ["the run", "the end"]


def test_a_frame_in_two_parts_is_one_frame() -> None:
    parts = frame(2).replace("bar 2", "bar ')\nSCREEN.out(b'2")
    assert on_terminal(START + parts).lines == ["the run", "", "bar 2", "figures 2"]


@pytest.mark.parametrize("code", ["", START + END], ids=["no view", "ended view"])
def test_without_a_view_bytes_are_written_as_they_are(code: str) -> None:
    written = on_terminal(f"{code}SCREEN.error(b'text')").written
    assert written.endswith(b"text")
    assert written.count(b"\x1b[J") == code.count("[J") + bool(code)  # the end of the view erases it once more


def test_errors_written_elsewhere_do_not_change_the_view(tmp_path: Path) -> None:
    assert on_terminal(f"{START}report('a line')", errors=f"2>{tmp_path}/errors").lines == [
        "the run",
        "",
        "bar 1",
        "figures 1",
    ]
    assert (tmp_path / "errors").read_bytes() == b"launch: a line\n"


def test_the_view_of_dead_ranks_is_removed() -> None:
    assert on_terminal(f"{START}SCREEN.end_view()").lines == ["the run"]
    assert on_terminal(f"{START}SCREEN.end_view()\nreport('the end')").lines == ["the run", "launch: the end"]
    assert on_terminal("SCREEN.end_view()").written == b""
