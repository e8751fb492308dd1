"""The training loop is `train` and `make_steps`. The functions that they call follow in the order of the calls.

    dptrain train data/cifar10
    mpirun -n 4 dptrain train data/cifar10 --run-dir runs/four

A run can be stopped anywhere and resumed by the same command with its --run-dir.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing

from dptrain.checkpoint.state import TrainingState
from dptrain.config.train import TrainConfig
from dptrain.errors import DptrainError, PreemptedError, RankLostError, TrainingError
from dptrain.health.interruption import NEVER, AskedToEndError, Interruption
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.training.checks import check_replicas
from dptrain.training.evaluate import Evaluation, evaluate
from dptrain.training.events import EvaluationStarted, Reporter, RunFinished
from dptrain.training.reporting import RunReport
from dptrain.training.run import Run
from dptrain.training.session import Session


def train(
    config: TrainConfig,
    communicator: Communicator,
    reporters: Sequence[Reporter] = (),
    interruption: Interruption = NEVER,
    connection: str = "one process",
) -> RunFinished | None:
    """Train from the start or a checkpoint to the last step; returns the last event, on rank 0 only.

    Every rank makes the same steps; the reporters of rank 0 receive the events. `connection` describes the communicator
    for people. DptrainError when training cannot begin or continue; PreemptedError after a signal, when everything is
    saved. With --elastic the remaining ranks continue without those that die, and another may become rank 0.
    """
    with closing(Run(config, RunReport(config, reporters, connection))) as run:
        while True:
            try:
                run.begin(communicator, interruption)
                evaluation = follow(run, interruption)
                break
            except RankLostError:
                if not config.elastic:
                    raise
                communicator = run.survivors(communicator)
        if run.report.rank != 0:
            return None
        finished = end_of(run, evaluation)
        run.report.emit(finished)
    return finished


def follow(run: Run, interruption: Interruption) -> Evaluation:
    """Make all remaining steps; PreemptedError on all ranks, with a checkpoint, if one received a signal."""
    try:
        evaluation = make_steps(run, interruption)
    except AskedToEndError:
        evaluation = None
    if run.saved_step != run.state.step:
        run.save()
    run.wait_until_saved()
    if evaluation is None:
        raise preempted(run, interruption)
    return evaluation


def make_steps(run: Run, interruption: Interruption) -> Evaluation:
    """From the run's state to the last step, and the evaluation there.

    AskedToEndError on all ranks, after the same step, if one received a signal.
    """
    session, state = run.session, run.state
    progress, evaluation = state.progress, None
    while True:
        if evaluation_is_due(session, state):
            evaluation = evaluate_state(run, interruption)
            run.save()
        if state.step >= session.last_step:
            break
        epoch, step = divmod(state.step, session.origin.steps_per_epoch)
        lr = session.schedule(state.step)
        outcome = session.take_step(state, epoch, step, lr, run.requests(interruption))
        if step == 0:  # not before the step: if a rank dies in it, the epoch before is evaluated once more
            progress.epoch_loss, progress.epoch_correct, progress.epoch_samples = 0.0, 0, 0
        progress.test_accuracy = None
        progress.epoch_loss += outcome.loss * outcome.samples
        progress.epoch_correct += outcome.correct
        progress.epoch_samples += outcome.samples
        run.report.step_finished(state, outcome, lr, epoch + 1)
        if outcome.requests.save_failed:
            run.wait_until_saved()  # raises what failed
        if outcome.requests.checkpoint and not evaluation_is_due(session, state):
            run.save()
        if outcome.requests.end:
            raise AskedToEndError
    if evaluation is None:  # the run was resumed from the last step
        evaluation = evaluate_state(run, interruption)
    return evaluation


def evaluation_is_due(session: Session, state: TrainingState) -> bool:
    """After the last step of an epoch or of the run, unless the state has an evaluation already."""
    at_end = state.step % session.origin.steps_per_epoch == 0 or state.step == session.last_step
    return at_end and state.step > 0 and state.progress.test_accuracy is None


def evaluate_state(run: Run, interruption: Interruption) -> Evaluation:
    """Evaluate the parameters on the test split and report it.

    TrainingError if ranks differ or the loss is not finite; AskedToEndError if a rank received a signal.
    """
    started = time.perf_counter()
    session, state = run.session, run.state
    epoch = (state.step - 1) // session.origin.steps_per_epoch + 1
    run.report.emit(EvaluationStarted(state.step, epoch))
    check_replicas(state, session.take_step.layouts, session.communicator)  # before any figure is reported
    evaluation = evaluate(session.evaluation, state.vectors, session.pool, session.communicator, interruption)
    if not math.isfinite(evaluation.loss):
        raise known_to_all(
            session.communicator,
            TrainingError(
                f"step {state.step}: the test loss is {evaluation.loss}: parameters have overflowed. "
                "Nothing of this step is saved; try a lower --lr in another --run-dir"
            ),
        )
    state.progress.test_accuracy = evaluation.accuracy
    lr = session.schedule(max(0, state.step - 1))
    run.report.evaluation_finished(state, evaluation, lr, epoch, time.perf_counter() - started)
    return evaluation


def end_of(run: Run, evaluation: Evaluation) -> RunFinished:
    """The last event of a run."""
    state, folder = run.state, run.folder
    return RunFinished(
        step=state.step,
        test_loss=evaluation.loss,
        test_accuracy=evaluation.accuracy,
        test_correct=evaluation.correct,
        test_samples=evaluation.samples,
        params_sha256=state.params_sha256,
        run_dir=str(folder.path),
        last_checkpoint=str(folder.checkpoint_of(state.step)),
        best_checkpoint=str(folder.best) if folder.best else None,
        best_accuracy=folder.best_accuracy,
        best_step=folder.best_step,
    )


def preempted(run: Run, interruption: Interruption) -> DptrainError:
    """The error that ends all ranks after a signal, once the checkpoint is written."""
    communicator = run.session.communicator
    signals = zip(communicator.world_ranks, communicator.allgather(interruption.signal_name), strict=True)
    by = signals_at_ranks({rank: name for rank, name in signals if name is not None}, communicator.size)
    checkpoint = run.folder.checkpoint_of(run.state.step)
    error = PreemptedError(
        f"stopped by {by}: {checkpoint.name} is written; resume with the same command and --run-dir {run.folder.path}"
    )
    error.by, error.checkpoint, error.run_dir = by, str(checkpoint), str(run.folder.path)
    return known_to_all(communicator, error)


def signals_at_ranks(signals: dict[int, str], size: int) -> str:
    """`signals` by rank in words: SIGTERM if all of the `size` ranks received it, else SIGTERM at rank 1, ..."""
    names = sorted(set(signals.values()))
    if len(signals) == size and len(names) == 1:
        return names[0]
    return ", ".join(f"{name} at rank {rank}" for rank, name in [*signals.items()][:4])
