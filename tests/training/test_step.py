"""dptrain.training.step: shards give the gradient of the joined batch, and a step is complete or changes nothing."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import ready
from numpy.typing import NDArray
from selection import quick_first
from training_runs import BATCH_SIZE, STEPS_PER_EPOCH, TRAIN, configuration, packed, session_and_state

from dptrain.arrays.memory import Workspace
from dptrain.checkpoint.state import TrainingState
from dptrain.errors import ModelError, TrainingError
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy
from dptrain.nn.network import Outcome
from dptrain.parallel.communicator import Communicator
from dptrain.parallel.reduce.reducer import Parts
from dptrain.training.evaluate import evaluate
from dptrain.training.session import Session
from dptrain.training.step import Seconds

PLAIN = {"weight_decay": 0.0}  # then momentum, from zero, is the gradient after one step


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Session, TrainingState]:
    return session_and_state(configuration(packed(tmp_path / "set"), tmp_path / "run", **PLAIN))


def joined_pass(
    session: Session, state: TrainingState, epoch: int, step: int, loss: CrossEntropy = CROSS_ENTROPY
) -> tuple[NDArray[np.float64], float, int, int]:
    """Mean gradient, mean loss, correct answers and samples of the whole batch, in one pass in float64."""
    batches = session.take_step.work.batches
    parts = [batches[shard].batch(epoch, step, Workspace()) for shard in sorted(batches)]
    images = np.concatenate([images for images, _ in parts], axis=-2).astype(np.float64)
    labels = np.concatenate([labels for _, labels in parts])
    gradient = np.zeros(session.network.layout.size)
    parameters = state.parameters.astype(np.float64)
    outcome = session.network.loss_and_grad(
        ready(session.network, parameters), images, labels, gradient, Workspace(np.float64), loss=loss
    )
    weights = loss.sample_weights(labels)
    return gradient / weights, outcome.loss_sum / weights, outcome.correct, len(labels)


def assert_step_is_the_joined_pass(
    session: Session, state: TrainingState, epoch: int, step: int, of: CrossEntropy = CROSS_ENTROPY
) -> int:
    gradient, loss, correct, samples = joined_pass(session, state, epoch, step, of)
    outcome = session.take_step(state, epoch, step, lr=0.01)
    error = np.linalg.norm(state.vectors["momentum"] - gradient) / np.linalg.norm(gradient)
    assert error < 1e-5
    assert outcome.loss == pytest.approx(loss, rel=1e-5)
    assert (outcome.correct, outcome.samples) == (correct, samples)
    return samples


@quick_first("shards", [1, 3, 4, 8], quick=2)
@pytest.mark.parametrize("model", ["convnet", "linear"])
def test_the_gradient_of_all_shards_equals_one_pass_over_the_joined_batch(
    shards: int, model: str, tmp_path: Path
) -> None:
    options = {"widths": [4, 6]} if model == "convnet" else {}
    config = configuration(
        packed(tmp_path / "set", shards=shards),
        tmp_path / "run",
        model=model,
        model_options=options,
        batch_size=6 * shards,
        threads=2,
        **PLAIN,
    )
    session, state = session_and_state(config)
    assert assert_step_is_the_joined_pass(session, state, 0, 0) == 6 * shards


def test_with_class_weights_the_gradient_is_divided_by_the_sum_of_the_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {"label_smoothing": 0.2, "class_weights": {"class-0": 7.5, "class-3": 0.1}, **PLAIN}
    config = configuration(packed(tmp_path / "set"), tmp_path / "run", **options)
    assert_step_is_the_joined_pass(*session_and_state(config), 0, 0, CrossEntropy(0.2, [7.5, 1, 1, 0.1, 1]))


def test_label_smoothing_is_used_in_training_but_not_in_evaluation(tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    config = configuration(data, tmp_path / "run", label_smoothing=0.2, **PLAIN)
    session, state = session_and_state(config)
    evaluations = [evaluate(session.evaluation, state.vectors, session.pool, Communicator())]
    assert_step_is_the_joined_pass(session, state, 0, 0, CrossEntropy(0.2))
    session, state = session_and_state(replace(config, label_smoothing=0.0))
    evaluations.append(evaluate(session.evaluation, state.vectors, session.pool, Communicator()))
    assert evaluations[0] == evaluations[1]


def test_the_gradient_of_the_global_batch_is_clipped(tmp_path: Path) -> None:
    data, clipped = packed(tmp_path / "set"), []
    for limit in (0.0, 0.1):
        config = configuration(data, tmp_path / "run", clip_norm=limit, **PLAIN)
        session, state = session_and_state(config)
        session.take_step(state, 0, 0, lr=0.01)
        clipped.append(state.vectors["momentum"].astype(np.float64))
    assert np.linalg.norm(clipped[1]) == pytest.approx(0.1)
    np.testing.assert_allclose(clipped[1], clipped[0] * (0.1 / np.linalg.norm(clipped[0])), rtol=1e-4, atol=1e-9)


def test_an_uneven_last_microbatch_has_its_exact_weight(prepared: tuple[Session, TrainingState]) -> None:
    session, state = prepared
    assert assert_step_is_the_joined_pass(session, state, 0, STEPS_PER_EPOCH - 1) == TRAIN % BATCH_SIZE


def test_shards_without_more_samples_add_nothing(tmp_path: Path) -> None:
    config = configuration(packed(tmp_path / "set", train=9), tmp_path / "run", batch_size=4, **PLAIN)
    session, state = session_and_state(config)
    for step in (0, 1):
        session.take_step(state, 0, step, 0.01)
    state.vectors["momentum"].fill(0)
    assert assert_step_is_the_joined_pass(session, state, 0, 2) == 1


def test_an_epoch_uses_every_sample_once(prepared: tuple[Session, TrainingState]) -> None:
    session, state = prepared
    samples = [session.take_step(state, 0, step, 0.01).samples for step in range(STEPS_PER_EPOCH)]
    assert samples == [BATCH_SIZE] * (STEPS_PER_EPOCH - 1) + [TRAIN % BATCH_SIZE]
    assert (state.step, state.progress.samples_seen) == (STEPS_PER_EPOCH, TRAIN)


@pytest.mark.parametrize("batch_size", [16, 80])
def test_each_slice_of_a_shards_vector_is_reported_once_it_is_complete(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's gradient comes first, so that a reduction can begin before the first layer's is computed.

    A microbatch of 20 samples is computed in blocks: a gradient is complete after the last one.
    """
    session, state = session_and_state(
        configuration(packed(tmp_path / "set"), tmp_path / "run", batch_size=batch_size, **PLAIN)
    )
    reported = reported_slices(session, state, monkeypatch)
    gradient, length = session.network.layout.size, len(session.take_step.work.reducer.vectors[0])
    first = session.network.layout.slices["linear1.weight"].start
    for parts in reported.values():
        assert [(part.start, part.stop) for part in parts] == [(first, gradient), (0, first), (gradient, length)]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"group_lr": {"head.bias": 0}}])
def test_slices_are_complete_with_parts_of_a_microbatch_and_with_frozen_parameters(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**PLAIN, "model": "resnet20", "model_options": {"width": 2, "blocks": 1}, **changes}
    session, state = session_and_state(
        configuration(packed(tmp_path / "set"), tmp_path / "run", batch_size=80, **options)
    )
    for parts in reported_slices(session, state, monkeypatch).values():
        length = len(session.take_step.work.reducer.vectors[0])
        assert sorted(index for part in parts for index in range(length)[part]) == list(range(length))


def reported_slices(session: Session, state: TrainingState, monkeypatch: pytest.MonkeyPatch) -> dict[int, list[slice]]:
    """By shard, what a step reports to the reduction. Checks that it does not change afterwards."""
    reducer, reported = session.take_step.work.reducer, defaultdict[int, list[tuple[slice, bytes]]](list)

    def ready(shard: int, part: slice) -> None:
        reported[shard].append((part, reducer.vectors[shard][part].tobytes()))

    def check_and_finish() -> Parts:
        for shard, vector in reducer.vectors.items():
            assert all(content == vector[part].tobytes() for part, content in reported[shard])
        return finish()

    finish = reducer.finish
    monkeypatch.setattr(reducer, "ready", ready)
    monkeypatch.setattr(reducer, "finish", check_and_finish)
    session.take_step(state, 0, 0, 0.01)
    return {shard: [part for part, _ in parts] for shard, parts in reported.items()}


def overflow_the_loss(session: Session, state: TrainingState) -> None:
    state.parameters[...] *= np.float32(1e30)


def overflow_the_gradient(session: Session, state: TrainingState) -> None:
    """Logits of about 1e9, but weights so large that the gradient of their input exceeds float32."""
    views = session.network.layout.views(state.parameters)
    views["conv1.weight"].fill(0)
    views["conv1.bias"].fill(1e-30)
    views["linear1.weight"][...] = 3e38 * np.sign(views["linear1.weight"])


@pytest.mark.parametrize(
    ("spoil", "what"), [(overflow_the_loss, "the loss is"), (overflow_the_gradient, "the gradient is not finite")]
)
def test_a_step_that_is_not_finite_is_reported_and_does_not_change_the_state(
    spoil: Callable[[Session, TrainingState], None], what: str, prepared: tuple[Session, TrainingState]
) -> None:
    session, state = prepared
    session.take_step(state, 0, 0, 0.01)
    spoil(session, state)
    before = state.digest(), replace(state.progress)
    with pytest.raises(TrainingError) as caught:
        session.take_step(state, 0, 1, 0.0625)
    assert (state.digest(), state.progress) == before
    for words in (what, "step 2:", "learning rate 0.0625"):
        assert words in str(caught.value)


def test_infinities_that_cancel_are_noticed_without_a_warning(
    prepared: tuple[Session, TrainingState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards overflow with opposite signs: their sum is NaN, and NumPy would warn on stderr."""
    session, state = prepared
    signs = itertools.cycle([np.inf, -np.inf, 0, 0])

    def overflow(parameters: Any, images: Any, labels: Any, gradient: Any, workspace: Any, **options: Any) -> Outcome:
        gradient.fill(next(signs))
        return Outcome(1.0, 0)

    monkeypatch.setattr(session.network, "loss_and_grad", overflow)
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        session.take_step(state, 0, 0, 0.01)


def test_infinities_of_both_signs_in_one_gradient_are_noticed_without_a_warning(
    prepared: tuple[Session, TrainingState], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, state = prepared

    def overflow(parameters: Any, images: Any, labels: Any, gradient: Any, workspace: Any, **options: Any) -> Outcome:
        gradient[::2], gradient[1::2] = np.inf, -np.inf
        return Outcome(1.0, 0)

    monkeypatch.setattr(session.network, "loss_and_grad", overflow)
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        session.take_step(state, 0, 0, 0.01)


def test_a_step_after_a_failed_one_is_not_affected(prepared: tuple[Session, TrainingState]) -> None:
    session, state = prepared
    good = state.parameters.copy()
    overflow_the_loss(session, state)
    with pytest.raises(TrainingError):
        session.take_step(state, 0, 0, 0.01)
    state.parameters[...] = good
    assert_step_is_the_joined_pass(session, state, 0, 0)


def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments, **options)

    return slow


@quick_first("part", ["compute", "data", "waiting", "reduction"])
def test_seconds_are_counted_by_kind(
    part: str, prepared: tuple[Session, TrainingState], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, state = prepared
    owner, name = {
        "compute": (session.network, "loss_and_grad"),
        "data": (session.take_step.work.batches[1], "batch"),
        "waiting": (session.take_step.communicator, "confirm"),
        "reduction": (session.take_step.work.reducer, "_exchange"),
    }[part]
    monkeypatch.setattr(owner, name, slowed(getattr(owner, name), 0.1))
    if part == "data":  # each shard reports its share: slow them all
        for batches in session.take_step.work.batches.values():
            monkeypatch.setattr(batches, "batch", slowed(type(batches).batch.__get__(batches), 0.1))
    seconds = vars(session.take_step(state, 0, 0, 0.01).seconds)
    assert seconds[part] >= 0.09
    assert max(seconds, key=seconds.__getitem__) == part


def test_the_seconds_of_a_step_add_up_to_its_duration(prepared: tuple[Session, TrainingState]) -> None:
    session, state = prepared
    missing = []
    for step in range(STEPS_PER_EPOCH):
        started = time.perf_counter()
        seconds = vars(session.take_step(state, 0, step, 0.01).seconds)
        missing.append(time.perf_counter() - started - sum(seconds.values()))
        assert min(seconds.values()) >= 0
    assert min(missing) >= 0
    assert min(missing) < 0.001  # the least disturbed step: others may be interrupted between two readings of the clock


def test_seconds_of_two_steps_are_summed_by_column() -> None:
    seconds = Seconds(1, 2, 3, 4)
    seconds += Seconds(10, 20, 30, 40)
    assert seconds == Seconds(compute=11, data=22, waiting=33, reduction=44)


MODEL = """
from dptrain.nn import Conv2d, Flatten, Layer, Linear

class Same(Layer):
    kind = "same"
    def forward(self, x, call):
        return x, None
    def backward(self, dy, saved, call):
        return dy

def build(input_shape, classes):
    return [Conv2d(2, 1), Same(), Flatten(), Linear(classes)]
"""


def test_a_users_layer_that_breaks_a_rule_only_after_the_checks_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    config = configuration(
        packed(tmp_path / "set"), tmp_path / "run", model=f"{tmp_path}/model.py:build", model_options={}, threads=1
    )
    session, state = session_and_state(config)
    layer: Any = next(layer for layer in session.network.layers if layer.name == "same1")
    layer.backward = lambda dy, saved, call: dy[:1]  # it could be broadcast
    with pytest.raises(ModelError, match=r"layer same1 \(Same\): backward returned"):
        session.take_step(state, 0, 0, lr=0.01)
    layer.forward = lambda x, call: (x[:1], None)
    with pytest.raises(ModelError, match=r"layer same1 \(Same\): the output of forward is"):
        evaluate(session.evaluation, state.vectors, session.pool, session.communicator)
