"""metrics.jsonl, and the same lines on standard output: a JSON object for each start, logged step, epoch and recovery.

    {"event": "start", "step", "ranks", "threads", "resumed_from", "time" (UTC), "host", "command", "versions": {...}}
    {"event": "step",  "step", "epoch", "loss", "accuracy", "lr", "images_per_second", "seconds": {...}}
    {"event": "epoch", "step", "epoch", "loss", "accuracy", "test_loss", "test_accuracy", "lr",
                       "images_per_second", "seconds": {...}, "rank_seconds": [{...}, ...], "evaluation_seconds",
                       "params_sha256"}
    {"event": "metric", "step", "epoch", "name", "value"}
    {"event": "tta", "step", "tta", "test_loss", "test_accuracy"}
    {"event": "recovery", "step", "lost", "ranks", "threads", "recovery_seconds"}

Loss and accuracy of a step are those of its global batch, of an epoch the means over its samples. "seconds" and
"images_per_second" are measured on rank 0, without evaluation: for a step since the previous logged step, for an epoch
since its start (null if this process made no step of it). "rank_seconds" has the "seconds" of each rank. "metric" is a
figure that a callback has logged. "tta" has the figures of the end of the run with test-time augmentation, if --tta
asks for it. Repeated steps are logged again, with the same values.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import dptrain
from dptrain.errors import DptrainError, UsageError
from dptrain.system.files import append_text
from dptrain.system.streams import write_to_stderr
from dptrain.system.text import shown
from dptrain.training.events import (
    EvaluationFinished,
    Event,
    MetricLogged,
    Note,
    RanksLost,
    RunFinished,
    RunStarted,
    StepFinished,
)


class JsonLines:
    """Appends to metrics.jsonl of the run folder, each line whole."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def handle(self, event: Event) -> None:
        """Write the line of an event; DptrainError when it cannot be written."""
        if isinstance(event, RunStarted | RanksLost):
            self._open(Path(event.run.run_dir))
        if (line := line_of(event)) is not None:
            self._write(line)

    def _open(self, run_dir: Path) -> None:
        self.close()
        self._path = run_dir / "metrics.jsonl"
        try:
            self._file = append_text(self._path)
            if not _ends_a_line(self._path):
                self._file.write("\n")  # an earlier run was killed while writing a line
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, line: str) -> None:
        """Append one line and flush it."""
        if self._file is None:
            raise UsageError("the run has ended: nothing can be reported any more")
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> DptrainError:
        self.close()
        return DptrainError(
            f"{self._path}: cannot be written: {error.strerror}; checkpoints so far are kept. Free some space, then "
            "start the same command again"
        )

    def close(self) -> None:
        """Close the file. All lines are flushed, except one that could not be written."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # closing tries to write that one again
                self._file.close()
            self._file = None


class JsonOutput:
    """Prints the same lines on standard output. Notes go to standard error."""

    def handle(self, event: Event) -> None:
        """Print the line of an event."""
        if isinstance(event, Note):
            write_to_stderr(f"dptrain: {shown(event.text)}")
        elif (line := line_of(event)) is not None:
            print(line, flush=True)

    def close(self) -> None:
        """Nothing is open."""


def line_of(event: Event) -> str | None:
    """The JSON of an event, None for one that is not logged."""
    match event:
        case RunStarted(run, step, resumed_from):
            return _json(
                "start",
                step=step,
                ranks=run.ranks,
                threads=run.threads,
                resumed_from=resumed_from,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                host=socket.gethostname(),
                command=sys.argv,
                versions=_versions(run.mpi),
            )
        case RanksLost(run, step, lost, seconds):
            ranks: dict[str, Any] = {"lost": lost, "ranks": run.ranks, "threads": run.threads}
            return _json("recovery", step=step, **ranks, recovery_seconds=seconds)
        case StepFinished(logged=True):
            return _json("step", **_without(event, "logged"))
        case EvaluationFinished(repeated=False):
            return _json("epoch", **_without(event, "repeated", "predictions", "validation_predictions"))
        case MetricLogged():
            value = event.value if math.isfinite(event.value) else None  # such as 0 / 0 in a user's function
            return _json("metric", **event._asdict() | {"value": value})
        case RunFinished(tta_accuracy=float(accuracy)):
            return _json("tta", step=event.step, tta=event.tta, test_loss=event.tta_loss, test_accuracy=accuracy)
    return None


def _without(event: StepFinished | EvaluationFinished, *names: str) -> dict[str, Any]:
    return {name: value for name, value in event._asdict().items() if name not in names}


def _json(event: str, **values: Any) -> str:
    return json.dumps({"event": event, **values}, allow_nan=False)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def _versions(mpi: str) -> dict[str, str | None]:
    """What the bits of a run may depend on; mpi4py is None in a run of one process that does not load it."""
    return {
        "dptrain": dptrain.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mpi4py": getattr(sys.modules.get("mpi4py"), "__version__", None),
        "mpi": mpi,
    }
