"""Records what the threads and workers of a rank do and when, or nothing.

Code of a step always asks its recorder. `Recorder` records nothing; `SpanRecorder` does so while it is `recording`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from dptrain.nn.layer import Layer, Runner
from dptrain.nn.timing import TimedRunner

NOTHING = nullcontext()
MAIN = "main"  # the track of the thread that made the recorder


class Span(NamedTuple):
    """What a track (a thread or worker) did from `start` to `end`, in seconds of time.perf_counter()."""

    track: str
    name: str
    category: str
    start: float
    end: float


class Recorder:
    """Records nothing. The base of the recorder that does."""

    recording = False

    def span(self, name: str, category: str) -> AbstractContextManager[object]:
        """Records the block inside `with` as one span."""
        return NOTHING

    def runner(self, inner: Runner, names: Mapping[str, str]) -> Runner:
        """A runner that records each call of a stage; `names` are those of its layers, by the stage's name."""
        return inner

    def take(self) -> list[Span]:
        """The spans since the last call, and those of all workers."""
        return []

    def collect_from(self, workers: Callable[[], list[Span]]) -> None:
        """`take` calls this function for the spans of forked workers."""


NO_RECORDER = Recorder()


class SpanRecorder(Recorder):
    """Keeps spans in memory; threads may use it at the same time."""

    def __init__(self) -> None:
        self._spans: list[
            tuple[str, str, str, float, float]
        ] = []  # plain tuples, which Python's collector does not visit
        self._workers: list[Callable[[], list[Span]]] = []
        self._main = threading.get_ident()

    def span(self, name: str, category: str) -> AbstractContextManager[object]:
        return _OpenSpan(self, name, category) if self.recording else NOTHING

    def keep(self, name: str, category: str, start: float, end: float) -> None:
        """Keep a span of this thread."""
        track = MAIN if threading.get_ident() == self._main else threading.current_thread().name
        self._spans.append((track, name, category, start, end))  # atomic in CPython

    def runner(self, inner: Runner, names: Mapping[str, str]) -> Runner:
        if not self.recording:
            return inner

        texts = {(name, way): f"{text} {way}" for name, text in names.items() for way in ("forward", "backward")}

        def report(layer: Layer, way: str, start: float, end: float) -> None:
            self.keep(texts[layer.name, way], way, start, end)

        return TimedRunner(report, inner)

    def take(self) -> list[Span]:
        taken, self._spans = self._spans, []
        return [Span(*values) for values in taken] + [span for workers in self._workers for span in workers()]

    def collect_from(self, workers: Callable[[], list[Span]]) -> None:
        self._workers.append(workers)


class _OpenSpan(AbstractContextManager[Any]):
    """A span that has begun."""

    def __init__(self, recorder: SpanRecorder, name: str, category: str) -> None:
        self._recorder, self._name, self._category = recorder, name, category

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._recorder.keep(self._name, self._category, self._start, time.perf_counter())
