"""tensorboard/ in the run folder: event files that TensorBoard shows, written by tensorboardX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.data.manifest import read_manifest
from dptrain.data.shard import read_shard
from dptrain.report.figures import figures
from dptrain.training.events import EvaluationFinished, Event, RanksLost, RunFacts, RunFinished, RunStarted

FOLDER = "tensorboard"
PICTURES = 16


class TensorBoard:
    """Writes curves, the configuration and some training images; at the end of a run, pictures of the evaluation."""

    def __init__(self) -> None:
        self._writer: Any = None

    def handle(self, event: Event) -> None:
        """Write the figures of an event. After an evaluation all of them are in the file."""
        if isinstance(event, RunStarted | RanksLost):
            self._open(event.run, event.step)
        if self._writer is None:
            return
        if isinstance(event, RunStarted):
            self._describe(event.run, event.step)
        for name, value in figures(event).items():
            self._writer.add_scalar(name, value, event.step)  # type: ignore[union-attr] # events with figures have it
        if isinstance(event, RunFinished):
            from dptrain.report.pictures import pictures

            for name, picture in pictures(event).items():
                self._writer.add_image(name, picture, event.step, dataformats="HWC")
        if isinstance(event, EvaluationFinished | RunFinished):
            self._writer.flush()

    def _open(self, run: RunFacts, step: int) -> None:
        """A new event file. TensorBoard hides what earlier files say about later steps, which are repeated."""
        from tensorboardX import SummaryWriter

        self.close()
        suffix = f".{os.getpid()}.{step}"  # without it, a file of the same second would be overwritten
        folder, repeated = str(Path(run.run_dir) / FOLDER), step + 1 if step else None
        self._writer = SummaryWriter(folder, purge_step=repeated, filename_suffix=suffix)

    def _describe(self, run: RunFacts, step: int) -> None:
        configuration = (Path(run.run_dir) / "config.toml").read_text(encoding="utf-8")
        self._writer.add_text("configuration", "\n".join(f"    {line}" for line in configuration.splitlines()), step)
        manifest = read_manifest(Path(run.data))
        images = read_shard(Path(run.data), manifest, "train", 0).images[:PICTURES]
        channels = images.shape[1]
        if len(images) and channels in (1, 3):
            self._writer.add_images("training_images", np.array(images), step)
        self._writer.flush()

    def close(self) -> None:
        """Write everything that is left."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
