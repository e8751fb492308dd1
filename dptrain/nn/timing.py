"""Reports when each call of a layer began and ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import PLAIN, CoupledLayer, Layer, Parameters, Pass, Runner

Report = Callable[[Layer, str, float, float], None]  # layer, "forward" or "backward", begin and end by perf_counter


class TimedRunner(Runner):
    """Calls `report` after each pass of a layer. `inner` makes the calls."""

    def __init__(self, report: Report, inner: Runner = PLAIN) -> None:
        self._report, self._inner = report, inner

    def _time(self, way: str, run: Callable[..., Any], layer: Layer, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = run(layer, *arguments)
        self._report(layer, way, started, time.perf_counter())
        return result

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        return self._inner.prepare(layer, parameters, workspace)

    def forward(self, layer: Layer, x: Array, call: Pass) -> Any:
        return self._time("forward", self._inner.forward, layer, x, call)

    def collect(self, layer: CoupledLayer, x: Array, call: Pass) -> Any:
        return self._time("forward", self._inner.collect, layer, x, call)

    def collect_backward(self, layer: CoupledLayer, dy: Array, x: Array, saved: Any, out: Array, call: Pass) -> Any:
        return self._time("backward", self._inner.collect_backward, layer, dy, x, saved, out, call)

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Any:
        return self._time("backward", self._inner.backward, layer, dy, saved, call)

    def complete(self, layer: Layer) -> None:
        self._inner.complete(layer)
