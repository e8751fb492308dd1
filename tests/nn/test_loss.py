import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.arrays.memory import Workspace
from dptrain.nn.check import central_difference
from dptrain.nn.loss import softmax_cross_entropy


@settings(max_examples=30, deadline=None)
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
