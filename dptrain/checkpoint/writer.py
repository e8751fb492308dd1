"""Checkpoints written by a thread, from a copy of the state, while training continues."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import Origin, checkpoint_bytes
from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.config.train import CheckpointConfig
from dptrain.health.recorder import NO_RECORDER, Recorder


class CheckpointWriter:
    """Writes one checkpoint at a time while training continues. Only rank 0 has one.

    After an error nothing more is written until `wait` has raised it: check `failed` at every step.
    """

    def __init__(self, folder: RunFolder, origin: Origin, layouts: Layouts, config: CheckpointConfig) -> None:
        self.folder, self.origin, self.layouts = folder, origin, layouts
        self._steps, self._seconds = config.checkpoint_interval
        self._submitted = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None
        self.saved_step = -1  # of the newest checkpoint that is on the disk

    def due(self, step: int) -> bool:
        """Whether `--checkpoint-every` requires a checkpoint of this step."""
        if self._seconds:
            return time.monotonic() - self._submitted >= self._seconds
        return self._steps > 0 and step % self._steps == 0

    def submit(self, state: TrainingState, recorder: Recorder = NO_RECORDER) -> None:
        """Begin to write the current state, when any earlier one is written."""
        if self._last is None or self._last.exception() is None:
            self._last = self._thread.submit(self._write, state.copy(), recorder)
            self._submitted = time.monotonic()

    def _write(self, state: TrainingState, recorder: Recorder) -> None:
        with recorder.span(f"write checkpoint of step {state.step}", "checkpoint"):
            content = checkpoint_bytes(state, self.origin, self.layouts)
            self.folder.save(state.step, content, state.progress.selection_accuracy)
        self.saved_step = state.step

    @property
    def failed(self) -> bool:
        """Whether the last write failed. Does not wait."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; raises its error, such as CheckpointError."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self, report: Callable[[str], None]) -> None:
        """Finish the last write and end the thread. `report` reports an error that `wait` has not raised."""
        self._thread.shutdown()
        if self._last is not None and (error := self._last.exception()):
            report(f"not written: {error}")
