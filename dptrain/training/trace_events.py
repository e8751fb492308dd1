"""The Trace Event Format of Chrome, which https://ui.perfetto.dev opens.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete events ("ph": "X") with begin
and duration in microseconds, and metadata events ("M") that name processes and threads. A rank is a process here, a
thread or forked worker a thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dptrain.health.recorder import MAIN, Span
from dptrain.parallel.clocks import Offset


class RankSpans(NamedTuple):
    """The spans of a rank, by its own clock; `rank` is that of MPI_COMM_WORLD."""

    rank: int
    host: str
    process: int
    spans: list[Span]


def trace_json(ranks: Sequence[RankSpans], offsets: Sequence[Offset], facts: Mapping[str, Any]) -> bytes:
    """The spans of all ranks by the clock of the first one, from 0; `facts` are for the reader of the file."""
    begin = min((s.start - off.seconds for one, off in zip(ranks, offsets, strict=True) for s in one.spans), default=0)
    events: list[dict[str, Any]] = []
    for one, offset in zip(ranks, offsets, strict=True):
        pid = one.rank
        events.append(_metadata("process_name", pid, 0, name=f"rank {pid} ({one.host}, process {one.process})"))
        events.append(_metadata("process_sort_index", pid, 0, sort_index=pid))
        tracks = {name: number for number, name in enumerate(sorted({_track(span) for span in one.spans}, key=_order))}
        for name, tid in tracks.items():
            events.append(_metadata("thread_name", pid, tid, name=name))
            events.append(_metadata("thread_sort_index", pid, tid, sort_index=tid))
        # Nanoseconds as whole numbers: a rounded span stays within the one around it.
        for span in sorted(one.spans, key=lambda span: (span.start, -span.end)):
            start, end = (round(1e9 * (time - offset.seconds - begin)) for time in (span.start, span.end))
            times = {"ts": start / 1000, "dur": (end - start) / 1000}
            where = {"pid": pid, "tid": tracks[_track(span)]}
            events.append({"name": span.name, "cat": span.category, "ph": "X", **times, **where})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(facts)}).encode()


def _metadata(kind: str, pid: int, tid: int, **arguments: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": arguments}


def _track(span: Span) -> str:
    """Threads get the names of forked workers: the first thread beside the main one is worker 1."""
    thread = re.fullmatch(r"shard_(\d+)", span.track)
    return f"worker {int(thread[1]) + 1}" if thread else span.track.removesuffix("_0")


def _order(track: str) -> tuple[bool, bool, int, str]:
    number = re.fullmatch(r"worker (\d+)", track)
    return track != MAIN, number is None, int(number[1]) if number else 0, track
