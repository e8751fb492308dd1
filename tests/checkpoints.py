"""Checkpoints for tests: a small layout, an origin, and states of random bits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.arrays.layout import Layout
from dptrain.checkpoint.format import HEADER, USER_BLOCK, Origin, _header, read_checkpoint
from dptrain.checkpoint.state import Layouts, Progress, TrainingState
from dptrain.errors import CheckpointError

SHAPES = {"conv1.weight": (3, 2, 3, 3), "conv1.bias": (3,), "linear1.weight": (5, 27), "linear1.bias": (5,)}


LAYOUT = Layout(SHAPES)


def layouts_of(layout: Layout) -> Layouts:
    """Layouts of a state of SGD on a network without buffers."""
    return {"parameters": layout, "buffers": Layout({}), "momentum": layout}


LAYOUTS = layouts_of(LAYOUT)


ORIGIN = Origin(
    config='lr = 0.05\nmodel = "convnet"\n',
    architecture=("input(2, 6, 6)", "conv1: Conv2d(3, 3, padding=1)"),
    input_shape=(2, 6, 6),
    classes=("cat", "dog", "épée", "d", "e"),
    data_name="random",
    manifest_sha256="ab" * 32,
    steps_per_epoch=7,
    environment={"numpy": "2.0", "cpu": 'a "CPU"'},
    mean=(0.1 + 0.2, 0.5),
    std=(0.25, 1.0),
)


# Written by dptrain 0.1.0 with h5py 3.11.0.
OLD = Path(__file__).parent / "fixtures" / "version-1" / "checkpoint.h5"


def vector(size: int, seed: int) -> np.ndarray:
    """Random bits: infinities, every kind of NaN, denormal numbers, both zeros."""
    bits = np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32)
    bits[: min(size, 4)] = [0x7FC00001, 0xFF800000, 0x80000000, 0x00000001][: min(size, 4)]
    return bits.view(np.float32)


def state_of(layout: Layout = LAYOUT, seed: int = 0, **changes: Any) -> TrainingState:
    values = {"step": 9, "samples_seen": 133, "epoch_loss": 0.1 + 0.2, "epoch_correct": 4, "epoch_samples": 32}
    vectors = {name: vector(one.size, seed + number) for number, (name, one) in enumerate(layouts_of(layout).items())}
    return TrainingState(vectors, Progress(**(values | changes)))


def resealed(content: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another index and the correct header for it, as a forger would create it."""
    size = HEADER.unpack_from(content)[2]
    index = json.loads(content[-size:])
    changed = edit(index)
    text = json.dumps(index if changed is None else changed).encode()
    data = content[USER_BLOCK:-size]
    return _header([data, text], len(text)) + data + text


LONGEST = 5.0  # seconds to refuse a file; normal are milliseconds, this limit detects a hang


def refused(path: Path, content: bytes) -> bool:
    """Whether this content is refused with a CheckpointError with the file's name; other errors are raised."""
    path.write_bytes(content)
    started = time.monotonic()
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return str(path) in str(error) and time.monotonic() - started < LONGEST
    return False
