"""launch.relay, launch.records and launch.notices: what of a job's output is shown, and what is believed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable

import pytest
from launch_runs import LOOP, OPEN_MPI, start_launch

from dptrain.system.record import LONGEST_LINE
from launch.notices import NoticeFilter
from launch.records import Record, RecordFilter, parse_record
from launch.relay import Relay

TOKEN = "0123456789abcdef"
MARK = f"dptrain-status {TOKEN} ".encode()
SUCCESS = MARK + b'{"status": 0, "reason": "", "retry": false}\n'


def relayed(*chunks: bytes, pause: float = 0.02, verbose: bool = False) -> tuple[Relay, bytes]:
    """A relay that has been given chunks one by one, and what it passed on."""
    source, sink = os.pipe()
    passed: list[bytes] = []
    relay = Relay(os.fdopen(source, "rb", buffering=0), passed.append, TOKEN, verbose=verbose)
    relay.start()
    for chunk in chunks:
        os.write(sink, chunk)
        time.sleep(pause)  # else two could be read as one
    os.close(sink)
    relay.finish()
    return relay, b"".join(passed)


def test_every_byte_is_passed_on_to_the_last() -> None:
    chunks = [b"\xff\x00\r\n", os.urandom(30_000), b"no newline at the end", b"dptrain-status", b"\n---", b"=" * 80]
    assert relayed(*chunks)[1] == b"".join(chunks)


@pytest.mark.parametrize("pause", [0.02, 0.25], ids=["soon", "after a while"])
def test_a_record_in_two_pieces_is_recognised(pause: float) -> None:
    relay, passed = relayed(b"text" + SUCCESS[:30], SUCCESS[30:] + b"more", pause=pause)
    assert relay.records == [Record(0)]
    assert passed == b"textmore"


def test_a_record_that_is_cut_off_is_shown() -> None:
    relay, passed = relayed(b"text\n" + SUCCESS[:-5], pause=0.25)
    assert relay.records == []
    assert passed == b"text\n" + SUCCESS[:-5]


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33, 10_000])
def test_records_are_taken_out_however_the_stream_is_cut(size: int) -> None:
    failure = MARK + json.dumps({"status": 70, "reason": "a \\ \u20ac", "retry": True, "by": "x"}).encode() + b"\r\n"
    text = b"dptrain-status \nd dptrain-statu" + SUCCESS + b"x" * 3 * LONGEST_LINE + b"no end " + failure + b"\ndptrain"
    records, passed = RecordFilter(TOKEN), b""
    for at in range(0, len(text), size):
        passed += records.take(text[at : at + size])
    passed += records.release(end=True)
    assert records.records == [Record(0), Record(70, "a \\ \u20ac", True, {"by": "x"})]
    assert passed == text.replace(SUCCESS, b"").replace(failure, b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0",
        b"[]",
        b"{}",
        b'{"status": "0", "reason": "", "retry": false}',
        b'{"status": true, "reason": "", "retry": false}',
        b'{"status": 256, "reason": "", "retry": false}',
        b'{"status": -1, "reason": "", "retry": false}',
        b'{"status": 0, "reason": null, "retry": false}',
        b'{"status": 0, "reason": "", "retry": 0}',
        b"[" * 3000,
    ],
)
def test_what_is_no_record_is_passed_on(content: bytes) -> None:
    assert parse_record(content) is None
    relay, passed = relayed(MARK + content + b"\n")
    assert relay.records == []
    assert passed == MARK + content + b"\n"


def test_a_record_that_was_torn_by_other_output_hides_nothing() -> None:
    torn = SUCCESS[:60] + b"another rank's megabytes\n" * 300 + SUCCESS[60:]
    relay, passed = relayed(torn, SUCCESS)
    assert relay.records == [Record(0)]
    assert passed == torn


RULE, DOUBLE = b"-" * 74 + b"\n", b"=" * 83 + b"\n"
MPICH = DOUBLE + b"=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\n" + DOUBLE
MPICH += b"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\nPlease see the FAQ page for debugging "
MPICH += b"suggestions\n"


@pytest.mark.parametrize(
    "notice",
    [
        RULE + b"prterun noticed that process rank 1 with PID 3 on node vm exited on\nsignal 9 (Killed).\n" + RULE,
        RULE + b"MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\n\nNOTE: ...\n" + RULE,
        b"\0" + RULE + b"prterun has exited due to process rank 1 with PID 3635 on node vm exiting\n" + RULE,
        b"\n" + MPICH,
        b"[vm:12345] PMIX ERROR: PMIX_ERR_UNREACH in file x.c at line 5\n",
        b"[proxy:0@vm] HYD_pmcd_pmip_control_cmd_cb (pm/pmiserv/pmip_cb.c:480): assert (!closed) failed\n",
        b"Abort(75) on node 0 (rank 0 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 75) - process 0\n",
    ],
)
@pytest.mark.parametrize("size", [1, 5, 100, 10_000])
def test_a_notice_of_mpirun_is_withheld(notice: bytes, size: int) -> None:
    text = b"before\n" + notice + b"after"
    notices, passed = NoticeFilter(), b""
    for at in range(0, len(text), size):
        passed += notices.take(text[at : at + size])
    passed += notices.release()
    assert passed == b"before\nafter"
    assert notices.withheld == notice


@pytest.mark.parametrize(
    "text",
    [
        RULE + b"a table\n" + RULE + b"of the user\n" + RULE,
        RULE + b"never closed\n" + b"a line\n" * 2000,
        DOUBLE + b"a heading\n" + DOUBLE,
        b"\n\n\nA line\n\n",
        b"[1/10] done",
        b"a line that has [vm:1] PMIX ERROR: within\n",
        b"\r\x1b[2K\x1b[1A\x1b[2Kstep 5\n",
    ],
)
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_other_text_is_passed_on(text: bytes, size: int) -> None:
    notices, passed = NoticeFilter(), b""
    for at in range(0, len(text), size):
        passed += notices.take(text[at : at + size])
    assert passed + notices.release() == text
    assert notices.withheld == b""


def test_with_verbose_notices_are_shown() -> None:
    assert relayed(MPICH, SUCCESS, verbose=True)[1] == MPICH


def test_a_beginning_is_shown_when_nothing_follows() -> None:
    """A question waits for its answer, and a rule is no reason to wait."""
    source, sink = os.pipe()
    passed: list[bytes] = []
    relay = Relay(os.fdopen(source, "rb", buffering=0), passed.append, TOKEN)
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
