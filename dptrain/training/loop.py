"""The training loop. A run can be stopped anywhere and resumed by the same command with its --run-dir."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing

from dptrain.checkpoint.state import TrainingState, evaluated
from dptrain.config.train import TrainConfig
from dptrain.errors import PreemptedError, RankLostError, TrainingError
from dptrain.health.interruption import NEVER, AskedToEndError, Interruption
from dptrain.parallel.communicator import Communicator, known_to_all
from dptrain.training.agreement import check_replicas
from dptrain.training.evaluate import Evaluation, evaluate
from dptrain.training.events import EvaluationStarted, Reporter, RunFinished
from dptrain.training.finite import LOWER_LR, check_finite
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
    return complete(Run(config, RunReport(config, reporters, connection)), communicator, interruption)


def complete(run: Run, communicator: Communicator, interruption: Interruption = NEVER) -> RunFinished | None:
    """`train`, for a run that is not begun."""
    config = run.config
    with closing(run):
        while True:
            try:
                run.begin(communicator, interruption)
                evaluation, augmented = finish_steps(run, interruption)
                break
            except RankLostError:
                if not config.elastic:
                    raise
                communicator = run.survivors(communicator)
        if run.report.rank != 0:
            return None
        finished = RunFinished(
            step=run.state.step,
            test_loss=evaluation.loss,
            test_accuracy=evaluation.accuracy,
            test_correct=evaluation.correct,
            test_samples=evaluation.samples,
            params_sha256=run.state.params_sha256,
            run_dir=str(run.folder.path),
            last_checkpoint=str(run.folder.checkpoint_of(run.state.step)),
            best_checkpoint=str(run.folder.best) if run.folder.best else None,
            best_accuracy=run.folder.best_accuracy,
            best_step=run.folder.best_step,
            tta=config.tta,
            tta_loss=augmented.loss if augmented else None,
            tta_accuracy=augmented.accuracy if augmented else None,
            validation_accuracy=run.state.progress.validation_accuracy,
            predictions=evaluation.predictions if config.report else None,
        )
        run.report.emit(finished)
    return finished


def finish_steps(run: Run, interruption: Interruption) -> tuple[Evaluation, Evaluation | None]:
    """Make and save all remaining steps; the last evaluation, and that with test-time augmentation if it is asked for.

    PreemptedError on all ranks, with a checkpoint, if one received a signal.
    """
    augmented = None
    try:
        evaluation = make_steps(run, interruption)
        if (tta := run.config.tta) != "none":
            session = run.session
            parts = session.evaluation, evaluated(run.state.vectors), session.pool, session.communicator
            augmented = evaluate(*parts, interruption, tta)
    except AskedToEndError:
        evaluation = None
    if run.saved_step != run.state.step:
        run.save()
    run.wait_until_saved()
    run.finish_timeline()
    if evaluation is not None:
        return evaluation, augmented
    communicator = run.session.communicator
    names = communicator.allgather(interruption.signal_name)
    signals = {rank: name for rank, name in zip(communicator.world_ranks, names, strict=True) if name}
    by = ", ".join(f"{name} at rank {rank}" for rank, name in [*signals.items()][:4])
    if len(signals) == len(names) and len(set(names)) == 1:  # mpirun and schedulers send the signal to all
        by = names[0]
    checkpoint, folder = run.folder.checkpoint_of(run.state.step), run.folder.path
    error = PreemptedError(
        f"stopped by {by}: {checkpoint.name} is written; resume with the same command and --run-dir {folder}"
    )
    error.by, error.checkpoint, error.run_dir = by, str(checkpoint), str(folder)
    raise known_to_all(communicator, error)


def make_steps(run: Run, interruption: Interruption) -> Evaluation:
    """Make the steps up to the last one; returns its evaluation.

    AskedToEndError on all ranks, after the same step, if one received a signal.
    """
    session, state = run.session, run.state
    progress, evaluation = state.progress, None
    while True:
        if evaluation_is_due(session, state):
            evaluation = evaluate_state(run, interruption)
            run.save()
            if session.communicator.broadcast(interruption.finish):  # a callback of rank 0 has decided it
                break
        if state.step >= session.last_step:
            break
        if stopped_early(session, run.config.early_stop, state):
            run.report.note(
                f"stopped early at step {state.step:,}: the validation accuracy has not been better than at step "
                f"{progress.best_step:,} for {run.config.early_stop} epochs"
            )
            break
        epoch, step = divmod(state.step, session.origin.steps_per_epoch)
        lr = session.schedule(state.step)
        if run.timeline.reach(state.step):
            run.write_timeline()
        with session.communicator.recorder.span(f"step {state.step + 1}", "step"):
            outcome = session.take_step(state, epoch, step, lr, run.requests(interruption))
        if step == 0:  # only after the step: if a rank dies in it, the last epoch is evaluated again
            progress.epoch_loss, progress.epoch_correct, progress.epoch_samples = 0.0, 0, 0
        progress.test_accuracy = progress.validation_accuracy = None
        progress.epoch_loss += outcome.loss * outcome.samples
        progress.epoch_correct += outcome.correct
        progress.epoch_samples += outcome.samples
        run.report.step_finished(state, outcome, lr, epoch + 1)
        if outcome.requests.save_failed:
            run.wait_until_saved()  # raises the error
        if outcome.requests.checkpoint and not evaluation_is_due(session, state):
            run.save()
        if outcome.requests.end:
            raise AskedToEndError
        if outcome.requests.finish:
            break
    if evaluation is None or state.progress.test_accuracy is None:  # resumed from its last step, or finished early
        evaluation = evaluate_state(run, interruption)
    return evaluation


def evaluation_is_due(session: Session, state: TrainingState) -> bool:
    """After the last step of an epoch or of the run, unless the state has an evaluation already."""
    at_end = state.step % session.origin.steps_per_epoch == 0 or state.step == session.last_step
    return at_end and state.step > 0 and state.progress.test_accuracy is None


def stopped_early(session: Session, epochs: int, state: TrainingState) -> bool:
    """Whether the validation accuracy has not improved for so many epochs (0: never). The same on all ranks."""
    since, each = state.step - state.progress.best_step, session.origin.steps_per_epoch
    return state.step % each == 0 and state.progress.best_validation is not None and 0 < epochs * each <= since


def evaluate_state(run: Run, interruption: Interruption) -> Evaluation:
    """Evaluate the parameters on the test split, and on the validation split if there is one, and report it.

    The last evaluation has predictions for --report.

    TrainingError if ranks differ or the loss is not finite; AskedToEndError if a rank received a signal.
    """
    started = time.perf_counter()
    session, state = run.session, run.state
    epoch = (state.step - 1) // session.origin.steps_per_epoch + 1
    run.report.emit(EvaluationStarted(state.step, epoch))
    layouts, communicator = session.take_step.layouts, session.communicator
    with communicator.recorder.span(f"evaluation after step {state.step}", "evaluation"):
        check_replicas(state, layouts, communicator)  # before any figure is reported
        check_finite(state, layouts, communicator)
        parts = evaluated(state.vectors), session.pool, communicator, interruption
        may_be_last = state.step == session.last_step or run.config.early_stop > 0
        predictions = run.all_predictions or (run.config.report and may_be_last)
        every = run.all_predictions
        evaluation = evaluate(session.evaluation, *parts, predictions=predictions, probabilities=every)
        validation = None
        if session.validation is not None:
            validation = evaluate(session.validation, *parts, predictions=every, probabilities=every)
    for split, found in (("test", evaluation), ("validation", validation)):
        if found is not None and not math.isfinite(found.loss):
            error = TrainingError(
                f"step {state.step}: the {split} loss is {found.loss}, though all parameters are finite. Nothing of "
                f"this step is saved and earlier checkpoints are kept. {LOWER_LR}"
            )
            raise known_to_all(communicator, error)
    rank_seconds = run.report.rank_seconds(communicator)
    remember(state, evaluation, validation)
    lr = session.schedule(max(0, state.step - 1))
    run.report.evaluation_finished(
        state, evaluation, validation, lr, epoch, time.perf_counter() - started, rank_seconds
    )
    return evaluation


def remember(state: TrainingState, evaluation: Evaluation, validation: Evaluation | None) -> None:
    """Add the accuracies of the current parameters to the progress of the run."""
    progress = state.progress
    progress.test_accuracy = evaluation.accuracy
    if validation is not None:
        progress.validation_accuracy = validation.accuracy
        if progress.best_validation is None or validation.accuracy > progress.best_validation:
            progress.best_validation, progress.best_step = validation.accuracy, state.step
