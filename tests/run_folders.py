"""Run folders for tests: small checkpoints at any step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from checkpoints import layouts_of

from dptrain.arrays.layout import Layout
from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.format import Origin, checkpoint_bytes, read_checkpoint
from dptrain.checkpoint.state import Progress, TrainingState

ORIGIN = Origin("", ("linear1",), (3, 1, 1), ("a", "b"), "random", "00" * 32, 7, {}, (0.5,) * 3, (0.25,) * 3)
LAYOUTS = layouts_of(Layout({"linear1.weight": (2, 3)}))


def content(step: int, accuracy: float | None = None) -> bytes:
    vectors = {name: np.full(layout.size, step, np.float32) for name, layout in LAYOUTS.items()}
    state = TrainingState(vectors, Progress(step=step, test_accuracy=accuracy))
    return checkpoint_bytes(state, ORIGIN, LAYOUTS)


def save(folder: RunFolder, step: int, accuracy: float | None = None) -> Path:
    return folder.save(step, content(step, accuracy), accuracy)


def best_of(folder: RunFolder) -> tuple[int, float | None]:
    """Step and accuracy of best.h5, which agree with those that the folder reports."""
    assert folder.best == folder.checkpoints / "best.h5"
    state = read_checkpoint(folder.best).state
    assert (state.step, state.progress.test_accuracy) == (folder.best_step, folder.best_accuracy)
    return state.step, state.progress.test_accuracy


def steps(folder: RunFolder) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in folder.numbered()]
