"""launch.relay: nothing of what a job writes is lost, changed or held back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_runs import LOOP, OPEN_MPI, start_launch

from launch.relay import RECENT_BYTES, Relay


def relayed(tmp_path: Path, *chunks: bytes) -> tuple[Relay, bytes]:
    """A relay that has been given chunks one by one, and what it passed on."""
    source, sink = os.pipe()
    with (tmp_path / "target").open("wb", buffering=0) as target:
        relay = Relay(os.fdopen(source, "rb", buffering=0), target.fileno())
        relay.start()
        for chunk in chunks:
            os.write(sink, chunk)
            time.sleep(0.05)  # else two could be read as one
        os.close(sink)
        relay.finish()
    return relay, (tmp_path / "target").read_bytes()


def test_every_byte_is_passed_on_to_the_last(tmp_path: Path) -> None:
    chunks = [b"\xff\x00\r\n", os.urandom(30_000), b"no newline at the end"]
    assert relayed(tmp_path, *chunks)[1] == b"".join(chunks)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([b"all is well\n"], None),
        ([b"dptrain: error: first\ndptrain: error: second\n"], "first"),
        ([b"x\ndptrain: er", b"ror: in two ", b"pieces\nmore\n"], "in two pieces"),
        ([b"dptrain: error: no newline"], "no newline"),
        ([b"dptrain: error: early\n", b"x" * (RECENT_BYTES + 1)], "early"),
    ],
)
def test_the_first_error_told_is_remembered(tmp_path: Path, chunks: list[bytes], told: str | None) -> None:
    assert relayed(tmp_path, *chunks)[0].told == told


def test_a_line_of_a_running_job_is_seen_at_once(fake_mpirun: Callable[..., str]) -> None:
    mpirun = fake_mpirun(OPEN_MPI, f"trap 'exit 0' TERM; echo a line >&2; {LOOP}")
    with start_launch("-n", "1", "--mpirun", mpirun, "--", "eval", "data") as process:
        assert process.stderr is not None
        process.stderr.readline()  # the command
        assert process.stderr.readline() == "a line\n"
        assert process.poll() is None
        process.terminate()


@pytest.mark.parametrize("chatter", ["sleep 20", "yes"], ids=["silent", "talking"])
def test_an_unmarked_process_that_keeps_the_stream_open_delays_the_end_by_a_second(
    fake_mpirun: Callable[..., str], chatter: str
) -> None:
    """Nothing else can be done about one that has cleared its environment."""
    job = f"env -i PATH=$PATH timeout 20 {chatter} >&2 & echo $!; echo the tail >&2; exit 3"
    started = time.monotonic()
    process = start_launch("-n", "1", "--mpirun", fake_mpirun(OPEN_MPI, job), "--", "train", "data")
    told, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    with contextlib.suppress(ProcessLookupError):  # a talking one ends when nobody reads any more
        os.kill(int(told), signal.SIGTERM)
    assert process.returncode == 3
    assert "the tail\n" in errors
