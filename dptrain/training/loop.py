"""The training loop: `train` is all of it, and what it calls stands below in the order it is called.

    dptrain train data/cifar10
    mpirun -n 4 dptrain train data/cifar10 --run-dir runs/four

A run can be stopped anywhere and started again by the same command with its --run-dir.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dptrain.config import TrainConfig
from dptrain.errors import CheckpointError, TrainingError, UsageError
from dptrain.nn.workspace import aligned_copy
from dptrain.parallel.communicator import Communicator, known_to_all, together
from dptrain.training.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint
from dptrain.training.diagnosis import check_finite
from dptrain.training.evaluate import Evaluation, evaluate
from dptrain.training.replicas import check_replicas
from dptrain.training.run_folder import RunFolder, step_of
from dptrain.training.setup import Session, check_resumable, set_up
from dptrain.training.state import TrainingState, initial_state
from dptrain.training.step import StepOutcome


class Observer(Protocol):
    """Who is told of a run's course. Told on every rank; on ranks other than 0 it keeps silent."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def started(self, session: Session, state: TrainingState, folder: RunFolder, resumed: Path | None) -> None:
        """The first step comes next."""

    def stepped(self, state: TrainingState, outcome: StepOutcome, lr: float) -> None:
        """A step was made."""

    def evaluated(self, state: TrainingState, evaluation: Evaluation, lr: float, seconds: float) -> None:
        """An epoch, or the run, has ended and was evaluated."""

    def finished(self, state: TrainingState, evaluation: Evaluation, folder: RunFolder) -> None:
        """All steps are made and saved."""


def train(config: TrainConfig, communicator: Communicator, observer: Observer) -> dict[str, Any]:
    """Train from the start or a checkpoint to the last step; returns the figures that sum the run up.

    Every rank makes the same steps. DptrainError when training cannot begin or go on.
    """
    session = set_up(config, communicator)
    steps_per_epoch = session.origin.steps_per_epoch
    evaluation = None
    with ExitStack() as ending:
        ending.callback(session.pool.close)
        state, folder, resumed = begin(config, session, communicator, observer)
        ending.callback(folder.close)
        observer.started(session, state, folder, resumed)
        while state.step < session.last_step:
            epoch, step = divmod(state.step, steps_per_epoch)
            lr = session.schedule(state.step)
            if step == 0:
                state.epoch_loss, state.epoch_correct, state.epoch_samples = 0.0, 0, 0
            outcome = session.take_step(state, epoch, step, lr)
            state.epoch_loss += outcome.loss * outcome.samples
            state.epoch_correct += outcome.correct
            state.epoch_samples += outcome.samples
            observer.stepped(state, outcome, lr)
            if state.step % steps_per_epoch == 0 or state.step == session.last_step:
                check_replicas(state, session.network.layout, communicator)
                evaluation = evaluate_state(session, state, communicator, observer, lr)
                save(session, state, folder, communicator, evaluation.accuracy)
            elif config.checkpoint_every and state.step % config.checkpoint_every == 0:
                save(session, state, folder, communicator, None)
        if evaluation is None:  # the checkpoint already was the last step's
            evaluation = evaluate_state(session, state, communicator, observer, session.schedule(state.step))
            if state.test_accuracy is None or resumed != folder.checkpoint_of(state.step):
                save(session, state, folder, communicator, evaluation.accuracy)
        observer.finished(state, evaluation, folder)
    return {
        "step": state.step,
        "test_loss": evaluation.loss,
        "test_accuracy": evaluation.accuracy,
        "params_sha256": state.params_sha256,
        "run_dir": str(folder.path),
    }


def begin(
    config: TrainConfig, session: Session, communicator: Communicator, observer: Observer
) -> tuple[TrainingState, RunFolder, Path | None]:
    """The state to go on from, the run's folder, and the checkpoint the state was read from, if any.

    Rank 0 reads, and claims the folder once nothing speaks against the run; all ranks receive.
    """
    opened: tuple[RunFolder, tuple[Path, Checkpoint] | None, list[str]] | None = None
    with together(communicator):
        if communicator.rank == 0:
            opened = _open_run(config, session, observer)
    found = communicator.broadcast(None if opened is None else (opened[0].path, opened[1]))
    folder = RunFolder(found[0]) if opened is None else opened[0]
    for note in session.notes + ([] if opened is None else opened[2]):
        observer.say(note)
    if found[1] is None:
        return initial_state(session.network, config.seed), folder, None
    resumed, checkpoint = found[1]
    state: TrainingState = checkpoint.state
    # Into memory of our own: what came through MPI lies anywhere.
    state.parameters, state.momentum = aligned_copy(state.parameters), aligned_copy(state.momentum)
    return state, folder, resumed


def _open_run(
    config: TrainConfig, session: Session, observer: Observer
) -> tuple[RunFolder, tuple[Path, Checkpoint] | None, list[str]]:
    """On rank 0: the claimed folder, the checkpoint to go on from with its path, and notes on what has changed."""
    folder, found = RunFolder(Path(config.run_dir)), None
    notes: list[str] = []
    try:
        if config.run_dir and folder.path.exists():
            folder.claim()  # before reading: another run may be writing there
        found = _find_checkpoint(config, folder, observer)
        if found is not None:
            notes = check_resumable(*found, config, session.origin)
        if not config.run_dir:
            folder = RunFolder.new(config.data, config.model)
        folder.claim()
        folder.write_config(replace(config, run_dir=str(folder.path), resume="auto").to_toml())
        folder.remember_all()
    except BaseException:
        folder.close()
        raise
    return folder, found, notes


def _find_checkpoint(config: TrainConfig, folder: RunFolder, observer: Observer) -> tuple[Path, Checkpoint] | None:
    if config.resume == "auto":
        return folder.newest(observer.say) if config.run_dir else None
    if config.resume == "never":
        if config.run_dir and (there := folder.numbered()):
            raise UsageError(
                f"--resume never, but {folder.path} already holds a run ({there[-1].name}), and nothing is "
                "written over: choose another --run-dir, or go on with --resume auto"
            )
        return None
    path, checkpoint = _named_checkpoint(Path(config.resume), observer)
    there = folder.numbered() if config.run_dir else []
    later = [other for other in there if step_of(other) > checkpoint.state.step]
    if later:
        raise UsageError(
            f"--resume {path} is at step {checkpoint.state.step}, but {folder.path} holds later checkpoints "
            f"({later[-1].name}), and nothing is written over: go on from those with --resume auto, or choose another "
            "--run-dir"
        )
    return path, checkpoint


def _named_checkpoint(path: Path, observer: Observer) -> tuple[Path, Checkpoint]:
    """The checkpoint of --resume PATH, or the newest of a run folder."""
    if path.is_file():
        return path, read_checkpoint(path)
    found = RunFolder(path).newest(observer.say) if path.is_dir() else None
    if found is None:
        raise CheckpointError(
            f"--resume {path}: no checkpoint there; expected auto, never, a checkpoint's path or a run folder"
        )
    return found


def evaluate_state(
    session: Session, state: TrainingState, communicator: Communicator, observer: Observer, lr: float
) -> Evaluation:
    """Evaluate the parameters on the test split and tell the observer; TrainingError if they have blown up."""
    started = time.perf_counter()
    evaluation = evaluate(session.evaluation, state.parameters, session.pool, communicator)
    if not math.isfinite(evaluation.loss):
        raise known_to_all(
            communicator,
            TrainingError(
                f"step {state.step}: the test loss is {evaluation.loss}: parameters have outgrown their range. "
                "Nothing of this step is saved; try a lower --lr in another --run-dir"
            ),
        )
    observer.evaluated(state, evaluation, lr, time.perf_counter() - started)
    return evaluation


def save(
    session: Session, state: TrainingState, folder: RunFolder, communicator: Communicator, accuracy: float | None
) -> None:
    """Rank 0 writes a checkpoint; the others hear of it if it cannot."""
    state.test_accuracy = accuracy
    with together(communicator):
        if communicator.rank == 0:
            check_finite(state, session.network.layout)
            folder.save(state.step, checkpoint_bytes(state, session.origin, session.network.layout), accuracy)
