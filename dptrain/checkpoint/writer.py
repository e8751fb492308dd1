"""Checkpoints written beside the training, by a thread, from a copy of the state."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import Origin, checkpoint_bytes
from dptrain.checkpoint.state import Layouts, TrainingState
from dptrain.config.train import CheckpointConfig


class CheckpointWriter:
    """Writes one checkpoint at a time while training goes on. Only rank 0 has one.

    What fails is kept, and nothing is written after it: `failed` is to be asked at every step, `wait` raises it.
    """

    def __init__(self, folder: RunFolder, origin: Origin, layouts: Layouts, config: CheckpointConfig) -> None:
        self.folder, self.origin, self.layouts = folder, origin, layouts
        self._steps, self._seconds = config.checkpoint_interval
        self._submitted = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None
        self._told = False

    def due(self, step: int) -> bool:
        """Does `--checkpoint-every` ask for a checkpoint of this step?"""
        if self._seconds:
            return time.monotonic() - self._submitted >= self._seconds
        return self._steps > 0 and step % self._steps == 0

    def submit(self, state: TrainingState) -> None:
        """Begin to write the state as it is now; waits for the one before, should that still be on its way."""
        if self._last is not None and self._last.exception() is not None:
            return
        self._last = self._thread.submit(self._write, state.copy())
        self._submitted = time.monotonic()

    def _write(self, state: TrainingState) -> None:
        content = checkpoint_bytes(state, self.origin, self.layouts)
        self.folder.save(state.step, content, state.progress.test_accuracy)

    @property
    def failed(self) -> bool:
        """Has the last one ended with an error? Does not wait."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def wait(self) -> None:
        """Until the last one is on disk; raises what it failed with, such as CheckpointError."""
        self._told = True
        if self._last is not None:
            self._last.result()

    def close(self, say: Callable[[str], None]) -> None:
        """Wait for the one on its way, and end the thread; an error that nobody has waited for is said at least."""
        self._thread.shutdown()
        if self.failed and not self._told and self._last is not None:
            say(f"not written: {self._last.exception()}")
