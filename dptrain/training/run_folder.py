"""The folder of a run: config.toml, metrics.jsonl and checkpoints/. Only rank 0 writes to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dptrain.errors import CheckpointError, UsageError
from dptrain.training.checkpoint import Checkpoint, read_checkpoint, write_durably

KEEP = 3
CHECKPOINT_NAME = re.compile(r"step-(\d{8,})\.h5")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


class RunFolder:
    """Keeps the last three checkpoints and the best, and finds the one to go on from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._best: tuple[float, Path] | None = None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def prepare(self, config: str) -> None:
        """Make the folder and save the configuration; UsageError when it cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / "config.toml", config.encode())
            with self.metrics.open("a"):
                pass
        except (OSError, CheckpointError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"--run-dir {self.path}: cannot be written: {reason}; choose another folder") from error

    def numbered(self) -> list[Path]:
        """Checkpoints from the oldest to the newest step."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(
            filter(lambda path: CHECKPOINT_NAME.fullmatch(path.name), self.checkpoints.iterdir()), key=step_of
        )

    def newest(self, say: Callable[[str], None]) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that proves itself; a broken one is passed over with a line that says so.

        CheckpointError when there are checkpoints but none is whole: starting from scratch would hide the loss.
        """
        paths = self.numbered()
        for path in reversed(paths):
            try:
                return path, read_checkpoint(path)
            except CheckpointError as error:
                say(f"passed over: {error}")
        if paths:
            raise CheckpointError(
                f"{self.checkpoints}: none of its {len(paths)} checkpoints is whole; start anew in another --run-dir"
            )
        return None

    def save(self, step: int, content: bytes, test_accuracy: float | None) -> Path:
        """Write step-<step>.h5 durably, then remove what is neither among the last three nor the best."""
        path = self.checkpoints / f"step-{step:08d}.h5"
        write_durably(path, content)
        self.remember(path, test_accuracy)
        for old in self.numbered()[:-KEEP]:
            if old not in (path, self.best):
                old.unlink()
        return path

    def remember(self, path: Path, test_accuracy: float | None) -> None:
        """Take the checkpoint for the best if no earlier one has its accuracy."""
        if test_accuracy is not None and (self._best is None or test_accuracy > self._best[0]):
            self._best = (test_accuracy, path)

    def remember_all(self) -> None:
        """After a resume: learn from the checkpoints that are there which is the best."""
        for path in self.numbered():
            try:
                self.remember(path, read_checkpoint(path).state.test_accuracy)
            except CheckpointError:
                continue

    @property
    def best(self) -> Path | None:
        return None if self._best is None else self._best[1]
