"""dptrain.training.loss: --label-smoothing, --class-weights and --balance-classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thread_ranks import on_ranks
from training_runs import CLASSES, configuration, packed, run

from dptrain.config.train import TrainConfig
from dptrain.errors import UsageError
from dptrain.nn.loss import CrossEntropy
from dptrain.training.loss import make_loss
from dptrain.training.session import set_up

NAMES = ("cat", "dog", "1")


def loss(samples: tuple[int, ...] = (2, 3, 5), **options: Any) -> CrossEntropy:
    return make_loss(TrainConfig(data="data", **options), NAMES, samples)


def weights(**options: Any) -> list[float]:
    found = loss(**options).weights
    assert found is not None
    return list(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set")


def test_without_options_the_loss_has_no_weights_and_no_smoothing() -> None:
    assert loss().weights is None
    assert loss().label_smoothing == 0


def test_classes_are_given_by_name_or_number_and_a_name_counts_first() -> None:
    assert weights(class_weights={"dog": 2, "0": 0.5}) == [0.5, 2, 1]
    assert weights(class_weights={"1": 4}) == [1, 1, 4]


def test_balanced_classes_have_the_same_weight_together() -> None:
    found = weights(balance_classes=True)
    assert found == pytest.approx([10 / 6, 10 / 9, 10 / 15])
    assert np.dot(found, [2, 3, 5]) == pytest.approx(10)
    assert weights(balance_classes=True, class_weights={"dog": 3}) == pytest.approx([10 / 6, 30 / 9, 10 / 15])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": {"dogg": 2}}, r"--class-weights: the data set has no class 'dogg'; did you mean 'dog'\?"),
        ({"class_weights": {"3": 2}}, "--class-weights: the data set has no class '3'; known: 1, cat, dog"),
        ({"class_weights": {"cat": 2, "0": 2}}, "'cat' and '0' are the same class: give it one weight"),
        ({"class_weights": {"cat": 0}}, "expected weights above 0"),
        ({"class_weights": {"cat": "heavy"}}, "expected weights above 0"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0, expected below 1.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loss(**options)


def test_a_class_without_samples_cannot_be_balanced() -> None:
    with pytest.raises(UsageError, match="--balance-classes: class 'dog' has no training samples"):
        loss((2, 0, 5), balance_classes=True)


def test_samples_are_counted_over_all_ranks(data: Path, tmp_path: Path) -> None:
    def found(rank: Any) -> list[float]:
        session = set_up(configuration(data, tmp_path / "run", balance_classes=True), rank)
        session.pool.close()
        counted = session.take_step.work.loss.weights
        assert counted is not None
        return list(counted)

    (alone,) = on_ranks(1, found)
    assert len(alone) == CLASSES
    assert len(set(alone)) > 1
    assert on_ranks(3, found) == [alone] * 3


def test_the_evaluation_is_the_plain_cross_entropy(data: Path, tmp_path: Path) -> None:
    """With a learning rate of almost 0 the parameters are equal, so is the test loss, and the training loss is not."""
    found = []
    for number, options in enumerate(({}, {"label_smoothing": 0.5, "class_weights": {"class-1": 5}})):
        _, memory = run(configuration(data, tmp_path / str(number), lr=1e-30, **options))
        found.append(memory.evaluations[-1])
    (_, plain_loss, _, plain_test_loss, _), (_, other_loss, _, other_test_loss, _) = found
    assert plain_test_loss == other_test_loss
    assert abs(plain_loss - other_loss) > 1e-3
