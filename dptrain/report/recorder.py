"""The observer of a training run: metrics.jsonl for programs, progress for people."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py

import dptrain
from dptrain.checkpoint.folder import RunFolder
from dptrain.checkpoint.state import TrainingState
from dptrain.config.train import TrainConfig
from dptrain.parallel.communicator import launched_rank
from dptrain.report.console import Progress
from dptrain.report.jsonl import MetricsWriter
from dptrain.training.evaluate import Evaluation
from dptrain.training.setup import Session
from dptrain.training.step import Seconds, StepOutcome


def versions() -> dict[str, str | None]:
    """The versions of dptrain, Python and the libraries that compute, write files and communicate."""
    found: dict[str, str | None] = {"dptrain": dptrain.__version__, "python": platform.python_version()}
    for name in ("numpy", "h5py", "mpi4py"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "hdf5": h5py.version.hdf5_version}


class Span:
    """Samples and seconds since the last line of an event."""

    def __init__(self) -> None:
        self.seconds = Seconds()
        self.samples = 0
        self.started = time.perf_counter()

    def add(self, outcome: StepOutcome) -> None:
        self.seconds += outcome.seconds
        self.samples += outcome.samples

    def figures(self, other_seconds: float = 0.0) -> dict[str, Any]:
        """images_per_second over wall time without `other_seconds` (None if no step was made), and seconds by kind."""
        elapsed = time.perf_counter() - self.started - other_seconds
        rate = round(self.samples / elapsed, 1) if self.samples else None
        rounded = {name: round(value, 4) for name, value in asdict(self.seconds).items()}
        return {"images_per_second": rate, "seconds": rounded}


class Recorder:
    """Implements `dptrain.training.events.Observer`; silent on all ranks but 0."""

    def __init__(self, config: TrainConfig, connection: str) -> None:
        self.config, self.connection = config, connection
        self.reports = launched_rank() == 0
        self.progress = Progress(shown=self.reports)
        self.metrics = MetricsWriter(None)
        self._since_logged = self._since_epoch = Span()
        self._rate = ""
        self._evaluated_before = -1  # a step whose evaluation the checkpoint held already

    def say(self, line: str) -> None:
        self.progress.say(line)

    def started(self, session: Session, state: TrainingState, folder: RunFolder, resumed: Path | None) -> None:
        manifest, threads = session.manifest, session.pool.size
        channels, height, width = manifest.image_shape
        self._take_over(session, state, folder)
        each = " each" if session.communicator.size > 1 else ""
        self.say(
            f"dptrain {dptrain.__version__}: {self.connection}, {threads} shard{'s'[: threads > 1]} at a time{each}"
        )
        self.say(
            f"data   {self.config.data}: {manifest.samples('train'):,} training and {manifest.samples('test'):,} "
            f"test images {channels}x{height}x{width}, {len(manifest.classes)} classes, {manifest.shard_count} shards"
        )
        self.say(
            f"model  {self.config.model}: {session.network.layout.size:,} parameters; "
            f"{self.steps_per_epoch} steps an epoch, {session.last_step} in all"
        )
        self.say(f"run    {folder.path}" + (f", from {resumed} (step {state.step})" if resumed else ""))
        self.metrics.write(
            "start",
            step=state.step,
            ranks=session.communicator.size,
            threads=threads,
            resumed_from=str(resumed) if resumed else None,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            command=sys.argv,
            versions={**versions(), "mpi": session.communicator.implementation},
        )
        self.progress.start(state.step, session.last_step)

    def recovered(
        self, session: Session, state: TrainingState, folder: RunFolder, lost: Sequence[int], seconds: float
    ) -> None:
        self._take_over(session, state, folder)
        ranks = session.communicator.size
        names = ", ".join(map(str, lost))
        self.say(
            f"rank{'s'[: len(lost) > 1]} {names} died: {ranks} rank{'s'[: ranks > 1]} of {session.pool.size} "
            f"thread{'s'[: session.pool.size > 1]} continue from step {state.step} after {seconds:.2f} s"
        )
        self.metrics.write(
            "recovery",
            step=state.step,
            lost=list(lost),
            ranks=ranks,
            threads=session.pool.size,
            recovery_seconds=round(seconds, 4),
        )
        self.progress.start(state.step, session.last_step)

    def _take_over(self, session: Session, state: TrainingState, folder: RunFolder) -> None:
        """From now on this rank reports if it is rank 0, which another rank may have been before."""
        self.progress.stop()
        self.reports = session.communicator.rank == 0
        self.progress.shown = self.reports
        self.metrics.close()
        self.metrics = MetricsWriter(folder.metrics if self.reports else None)
        self.steps_per_epoch = session.origin.steps_per_epoch
        self._evaluated_before = -1 if state.progress.test_accuracy is None else state.step
        self._since_logged, self._since_epoch = Span(), Span()

    def stepped(self, state: TrainingState, outcome: StepOutcome, lr: float) -> None:
        for span in (self._since_logged, self._since_epoch):
            span.add(outcome)
        logged = state.step % self.config.log_every == 0
        epoch = (state.step - 1) // self.steps_per_epoch + 1
        accuracy = outcome.correct / outcome.samples
        if logged:
            figures = self._since_logged.figures()
            self.metrics.write(
                "step", step=state.step, epoch=epoch, loss=outcome.loss, accuracy=accuracy, lr=lr, **figures
            )
            self._rate = f"{figures['images_per_second']:,.0f} images/s"
            self._since_logged = Span()
        line = (
            f"step {state.step}  epoch {epoch}/{self.config.epochs}  loss {outcome.loss:.4f}  "
            f"batch accuracy {100 * accuracy:.2f} %  lr {lr:.5f}  {self._rate}"
        )
        brief = f"epoch {epoch}/{self.config.epochs}  loss {outcome.loss:.3f}  {self._rate}"
        self.progress.step(state.step, brief, line if logged else None)

    def evaluating(self, state: TrainingState) -> None:
        epoch = (state.step - 1) // self.steps_per_epoch + 1
        self.progress.phase(f"epoch {epoch}/{self.config.epochs}  evaluating")

    def evaluated(self, state: TrainingState, evaluation: Evaluation, lr: float, seconds: float) -> None:
        epoch = (state.step - 1) // self.steps_per_epoch + 1
        progress = state.progress
        loss, accuracy = progress.epoch_loss / progress.epoch_samples, progress.epoch_correct / progress.epoch_samples
        if state.step != self._evaluated_before:
            self.metrics.write(
                "epoch",
                step=state.step,
                epoch=epoch,
                loss=loss,
                accuracy=accuracy,
                test_loss=evaluation.loss,
                test_accuracy=evaluation.accuracy,
                lr=lr,
                **self._since_epoch.figures(seconds),
                evaluation_seconds=round(seconds, 4),
                params_sha256=state.params_sha256,
            )
        self.say(
            f"epoch {epoch}/{self.config.epochs} (step {state.step})  training loss {loss:.4f}, accuracy "
            f"{100 * accuracy:.2f} %  test loss {evaluation.loss:.4f}, accuracy {100 * evaluation.accuracy:.2f} %"
        )
        self._since_logged, self._since_epoch = Span(), Span()

    def finished(self, state: TrainingState, evaluation: Evaluation, folder: RunFolder) -> None:
        self.progress.stop()
        last = folder.checkpoint_of(state.step)
        self.say(f"test accuracy {100 * evaluation.accuracy:.2f} % ({evaluation.correct:,} of {evaluation.samples:,})")
        self.say(f"last checkpoint {last}")
        if folder.best is not None and folder.best_accuracy is not None:
            accuracy = f"test accuracy {100 * folder.best_accuracy:.2f} %, step {folder.best_step:,}"
            self.say(f"best checkpoint {folder.best} ({accuracy})")
        self.say(f"metrics         {folder.metrics}")
        self.say(f"params_sha256   {state.params_sha256}")
        self.close()

    def close(self) -> None:
        """Remove the bar and close the file; also after an error."""
        self.progress.stop()
        self.metrics.close()
