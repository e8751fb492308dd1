"""metrics.jsonl: one JSON object a line, one line a logged step, an epoch, a start.

    {"event": "start", "step", "ranks", "threads", "resumed_from", "time" (UTC), "host", "command", "versions": {...}}
    {"event": "step",  "step", "epoch", "loss", "accuracy", "lr", "images_per_second", "seconds": {...}}
    {"event": "epoch", "step", "epoch", "loss", "accuracy", "test_loss", "test_accuracy", "lr",
                       "images_per_second", "seconds": {...}, "evaluation_seconds", "params_sha256"}
    {"event": "recovery", "step", "lost", "ranks", "threads", "recovery_seconds"}

Loss and accuracy of a step are of its global batch, of an epoch the mean over its samples: they are the same on any
number of ranks. "seconds" and "images_per_second" are rank 0's, since the line before of the same event (for steps, or
since the start of the epoch), without evaluation, but with the time to hand over a checkpoint. "images_per_second" is
null in the epoch line of a run that was resumed at the end of the epoch: it made no step. A resumed run appends: steps
that are repeated are logged again, with the same figures.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from dptrain.errors import DptrainError
from dptrain.system.files import append_text


class MetricsWriter:
    """Appends to metrics.jsonl, each line whole. `path` None, as on all ranks but 0, writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: TextIO | None = None

    def write(self, event: str, **values: Any) -> None:
        """Append one line and hand it to the operating system; DptrainError when it cannot be written."""
        if self.path is None:
            return
        try:
            if self._file is None:
                self._file = append_text(self.path)
                if not _ends_a_line(self.path):
                    self._file.write("\n")  # a run before this one was cut off within a line
            self._file.write(json.dumps({"event": event, **values}, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise DptrainError(
                f"{self.path}: cannot be written: {error.strerror}; checkpoints so far are kept. Free some space, then "
                "start the same command again"
            ) from error

    def _abandon(self) -> None:
        """Close the file; after a failed write, closing tries once more and fails again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def close(self) -> None:
        self._abandon()  # every line is with the operating system already


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")
