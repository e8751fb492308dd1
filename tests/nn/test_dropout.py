"""Dropout: which values are dropped, how often, and that this depends on the sample's position."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn import Dropout, Pass, check_layer


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])
def test_backward_is_the_gradient(shape: tuple[int, ...]) -> None:
    check_layer(Dropout(0.4), shape)


def dropped(p: float, x: Array, position: int = 0, training: bool = True) -> tuple[Array, Array]:
    """Output, and dx for a gradient of ones."""
    layer = Dropout(p)
    call = Pass({}, {}, Workspace(), training=training, draws=Draws(1, 2, 3, position))
    y, saved = layer.forward(x, call)
    return y, layer.backward(np.ones_like(x), saved, call) if saved is not None else np.ones_like(x)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.8])
def test_values_are_dropped_with_the_given_probability_and_scaled_as_in_pytorch(p: float) -> None:
    import torch

    x = np.random.default_rng(0).normal(size=(16, 16, 8, 8)).astype(np.float32)
    y, dx = dropped(p, x)
    kept = dx != 0
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / x.size) + 1e-9
    given = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.dropout(given, p)
    theirs.sum().backward()
    both = kept & (theirs.detach().numpy() != 0)
    np.testing.assert_allclose(y[both], theirs.detach().numpy()[both], rtol=1e-6)
    np.testing.assert_allclose(dx[both], given.grad.numpy()[both], rtol=1e-6)
    assert not y[~kept].any()


def test_an_evaluation_changes_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(4, 4, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(dropped(0.5, x, training=False)[0], x)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_dropped_values_do_not_depend_on_the_block(size: int) -> None:
    x = np.ones((3, 5, 11, 2), np.float32)
    whole, _ = dropped(0.5, x)
    parts = [dropped(0.5, x[:, :, start : start + size], start)[0] for start in range(0, 11, size)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), whole)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_an_invalid_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="expected a probability below 1"):
        Dropout(p)
