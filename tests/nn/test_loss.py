import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import ready
from selection import examples

from dptrain.arrays.memory import Workspace
from dptrain.nn import Flatten, Linear, Network
from dptrain.nn.check import central_difference
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy, softmax_cross_entropy


@examples(30)
@given(
    classes=st.integers(1, 6), samples=st.integers(1, 4), scale=st.sampled_from([0.1, 1, 10]), seed=st.integers(0, 99)
)
def test_gradient_is_the_derivative_of_the_summed_loss(classes: int, samples: int, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = scale * generator.normal(size=(samples, classes))
    labels = generator.integers(0, classes, samples)
    workspace = Workspace(np.float64)
    expected = central_difference(lambda: softmax_cross_entropy(logits, labels, workspace)[0].sum(), logits)
    _, gradient = softmax_cross_entropy(logits, labels, workspace)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_loss_is_the_negative_log_of_the_softmax() -> None:
    logits = np.array([[1.0, 2.0, 4.0]])
    expected = -math.log(math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(4)))
    losses, _ = softmax_cross_entropy(logits, np.array([1]), Workspace(np.float64))
    assert losses[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("logit", [0.0, 88.8, -88.8, 1e4, -1e4, 1e30, -1e30])
def test_the_loss_is_finite_for_finite_logits(logit: float) -> None:
    logits = np.array([[logit, 0], [0, logit], [logit, logit]], np.float32)
    losses, gradient = softmax_cross_entropy(logits, np.array([0, 0, 1]), Workspace())
    expected = np.logaddexp(0, np.array([-logit, logit, 0]))
    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-7)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-6)


def test_the_loss_of_a_uniform_guess_is_log_k() -> None:
    losses, _ = softmax_cross_entropy(np.full((3, 10), 5.0), np.array([0, 4, 9]), Workspace(np.float64))
    np.testing.assert_allclose(losses, math.log(10), rtol=1e-12)


OPTIONS = st.fixed_dictionaries(
    {"label_smoothing": st.sampled_from([0.0, 0.2, 0.9]), "weighted": st.booleans(), "classes": st.integers(1, 6)}
)


def random_case(options: dict[str, Any], seed: int) -> tuple[CrossEntropy, np.ndarray, np.ndarray]:
    """A loss, logits (5, K) and labels (5,)."""
    generator, classes = np.random.default_rng(seed), options["classes"]
    weights = list(generator.uniform(0.1, 5, classes)) if options["weighted"] else None
    loss = CrossEntropy(options["label_smoothing"], weights)
    return loss, 3 * generator.normal(size=(5, classes)), generator.integers(0, classes, 5)


@examples(20)
@given(options=OPTIONS, seed=st.integers(0, 99))
def test_the_gradient_with_smoothing_and_weights_is_the_derivative(options: dict[str, Any], seed: int) -> None:
    loss, logits, labels = random_case(options, seed)
    workspace = Workspace(np.float64)
    expected = central_difference(lambda: loss(logits, labels, workspace)[0].sum(), logits)
    np.testing.assert_allclose(loss(logits, labels, workspace)[1], expected, atol=1e-6)


@examples(40)
@given(options=OPTIONS, seed=st.integers(0, 99))
def test_sum_mean_and_gradient_agree_with_pytorch(options: dict[str, Any], seed: int) -> None:
    import torch

    loss, logits, labels = random_case(options, seed)
    weights = None if loss.weights is None else torch.tensor(loss.weights)
    theirs, targets = torch.tensor(logits, requires_grad=True), torch.tensor(labels)
    arguments: dict[str, Any] = {"weight": weights, "label_smoothing": loss.label_smoothing}
    total = torch.nn.CrossEntropyLoss(**arguments, reduction="sum")(theirs, targets)
    total.backward()
    mean = torch.nn.CrossEntropyLoss(**arguments)(theirs, targets)
    losses, gradient = loss(logits, labels, Workspace(np.float64))
    assert theirs.grad is not None
    assert losses.sum() == pytest.approx(total.item(), rel=1e-12, abs=1e-12)
    assert losses.sum() / loss.sample_weights(labels) == pytest.approx(mean.item(), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_without_options_the_loss_is_the_plain_cross_entropy_to_the_bit() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 10)).astype(np.float32)
    labels = np.arange(7)
    losses, gradient = (part.copy() for part in CROSS_ENTROPY(logits, labels, Workspace()))
    again, same = softmax_cross_entropy(logits, labels, Workspace())
    assert np.array_equal(losses, again)
    assert np.array_equal(gradient, same)
    assert CROSS_ENTROPY.sample_weights(labels) == 7


def test_weights_of_one_and_almost_no_smoothing_give_almost_the_plain_loss() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 10)).astype(np.float32)
    plain = softmax_cross_entropy(logits, np.arange(7), Workspace())
    for found, expected in zip(CrossEntropy(1e-9, [1] * 10)(logits, np.arange(7), Workspace()), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_network_is_trained_with_the_loss_that_it_gets() -> None:
    network, loss = Network([Flatten(), Linear(3)], (2, 2, 2)), CrossEntropy(0.3, [1, 2, 3])
    parameters = np.random.default_rng(0).normal(size=network.layout.size)
    images, labels = np.random.default_rng(1).normal(size=(2, 2, 4, 2)), np.array([0, 1, 2, 2])
    prepared, workspace = ready(network, parameters), Workspace(np.float64)
    gradient = np.empty_like(parameters)
    outcome = network.loss_and_grad(prepared, images, labels, gradient, workspace, loss=loss)
    losses, dlogits = loss(network.predict(prepared, images, workspace).copy(), labels, Workspace(np.float64))
    assert outcome.loss_sum == pytest.approx(losses.sum(), rel=1e-12)
    np.testing.assert_allclose(gradient[network.layout.slices["linear1.bias"]], dlogits.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("smoothing", [-0.1, 1, math.nan])
def test_impossible_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"label_smoothing is {smoothing}, expected from 0 to below 1"):
        CrossEntropy(smoothing)


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_impossible_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="expected numbers above 0, one for each class"):
        CrossEntropy(weights=[1, weight])


def test_weights_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="there are weights of 2 classes, but 3 logits"):
        CrossEntropy(weights=[1, 2])(np.zeros((1, 3), np.float32), np.array([0]), Workspace())
