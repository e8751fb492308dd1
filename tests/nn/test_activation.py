"""Every activation: gradients, PyTorch's values, extreme inputs, and computing in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import training_pass
from selection import examples

from dptrain import nn
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn import GELU, LeakyReLU, Pass, ReLU, SiLU
from dptrain.nn.check import check_layer
from dptrain.nn.layers import activation
from dptrain.nn.layers.activation import Activation

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)

# By name: the layer, and the function of torch.nn.functional with its options.
ACTIVATIONS: dict[str, tuple[Callable[[], Activation], str, dict[str, Any]]] = {
    "GELU": (GELU, "gelu", {"approximate": "tanh"}),
    "LeakyReLU": (LeakyReLU, "leaky_relu", {}),
    "LeakyReLU with a large slope": (lambda: LeakyReLU(1.7), "leaky_relu", {"negative_slope": 1.7}),
    "LeakyReLU with a negative slope": (lambda: LeakyReLU(-0.3), "leaky_relu", {"negative_slope": -0.3}),
    "ReLU": (ReLU, "relu", {}),
    "SiLU": (SiLU, "silu", {}),
}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def made(name: str) -> Activation:
    layer = ACTIVATIONS[name][0]()
    layer.name = f"{layer.kind}1"
    return layer


def passes(layer: Activation, x: Array, dy: Array) -> tuple[Array, Array]:
    """y and dx."""
    call = training_pass({}, Workspace(x.dtype))
    y, saved = layer.forward(x, call)
    return y.copy(), layer.backward(dy.copy(), saved, call)


def test_every_activation_is_tested() -> None:
    classes = [getattr(nn, name) for name in nn.__all__ if isinstance(getattr(nn, name), type)]
    found = {one.__name__ for one in classes if issubclass(one, Activation) and one is not Activation}
    assert found == {name.partition(" ")[0] for name in ACTIVATIONS}


@every_activation
@examples(8)
@given(shape=SHAPES, samples=st.integers(1, 3))
def test_backward_is_the_gradient(name: str, shape: tuple[int, ...], samples: int) -> None:
    check_layer(ACTIVATIONS[name][0](), shape, samples)


@every_activation
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 3e-15)])
def test_values_and_gradients_agree_with_pytorch(name: str, dtype: Any, tolerance: float) -> None:
    import torch

    x = np.concatenate([np.linspace(-12, 12, 2001), [0, 1e-30, -1e-30, 90, -90, 1e4, -1e4]]).astype(dtype)[:, None]
    _, function, options = ACTIVATIONS[name]
    given = torch.tensor(x, requires_grad=True)
    expected = getattr(torch.nn.functional, function)(given, **options)
    expected.backward(torch.full_like(given, 3))
    y, dx = passes(made(name), x, np.full_like(x, 3))
    assert given.grad is not None
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, given.grad.numpy(), rtol=5 * tolerance, atol=5 * tolerance)


@every_activation
def test_finite_inputs_give_finite_results_and_nan_gives_nan(name: str) -> None:
    x = np.array([[1e12], [-1e12], [1e4], [-1e4], [0], [-0.0], [np.nan]], np.float32)
    y, dx = passes(made(name), x, np.ones_like(x))
    assert np.isfinite(y[:-1]).all()
    assert np.isfinite(dx[:-1]).all()
    assert np.isnan(y[-1])


@every_activation
def test_neither_pieces_nor_evaluation_nor_memory_order_change_a_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    x, dy = generator.normal(0, 3, size=(2, 5, 7, 3, 4)).astype(np.float32)
    kept = x.copy()
    y, dx = passes(made(name), x, dy)
    assert np.array_equal(x, kept)
    evaluated, _ = made(name).forward(x, Pass({}, {}, Workspace()))
    assert np.array_equal(y, evaluated)
    within = np.zeros((5, 9, 3, 4), np.float32)
    within[:, 1:8] = x
    monkeypatch.setattr(activation, "PIECE", 64)
    for same in (x, within[:, 1:8]):
        again = passes(made(name), same, dy)
        assert np.array_equal(y, again[0])
        assert np.array_equal(dx, again[1])


def test_relu_clips_below_zero() -> None:
    x = np.array([[-1.5, 0.0, 2.5]], np.float32)
    y, dx = passes(made("ReLU"), x, np.ones_like(x))
    assert y.tolist() == [[0, 0, 2.5]]
    assert dx.tolist() == [[0, 0, 1]]


def test_a_slope_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="negative_slope is inf, expected a finite number"):
        LeakyReLU(float("inf"))
