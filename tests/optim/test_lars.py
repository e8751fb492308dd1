"""dptrain.optim.lars: the steps of the paper, computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optimizers import LAYOUT, PARAMETERS, random_run

from dptrain.arrays.memory import Array
from dptrain.optim.lars import LARS


def run(seed: int, **options: Any) -> tuple[Array, Array]:
    """Parameters before and after all steps."""
    parameters, gradients, rates = random_run(seed)
    before, velocity, optimizer = parameters.copy(), np.zeros_like(parameters), LARS(PARAMETERS, **options)
    for step, (gradient, lr) in enumerate(zip(gradients, rates, strict=True)):
        optimizer.update({"parameters": parameters, "momentum": velocity}, gradient, lr, step)
    return before, parameters


@pytest.mark.parametrize(("momentum", "trust", "weight_decay"), [(0.9, 0.02, 0.1), (0.0, 0.001, 0.0), (0.5, 1.0, 0.3)])
def test_twenty_steps_follow_the_paper(momentum: float, trust: float, weight_decay: float) -> None:
    before, after = run(7, momentum=momentum, trust=trust, weight_decay=weight_decay)
    _, gradients, rates = random_run(7)
    w = {name: view.astype(np.float64) for name, view in LAYOUT.views(before).items()}
    v = {name: np.zeros_like(view) for name, view in w.items()}
    for gradient, lr in zip(gradients, rates, strict=True):
        for name, view in LAYOUT.views(gradient).items():
            g = view.astype(np.float64)
            decay: Any = 0.0
            local: Any = 1.0
            if name.endswith("weight"):
                size, slope, decay = np.linalg.norm(w[name]), np.linalg.norm(g), weight_decay
                local = trust * size / (slope + decay * size)
            v[name] = momentum * v[name] + local * (g + decay * w[name])
            w[name] -= lr * v[name]
    for name, view in LAYOUT.views(after).items():
        np.testing.assert_allclose(view, w[name], rtol=1e-5, atol=2e-6)


def test_a_step_is_a_share_of_the_weight_whatever_the_scale_of_the_gradient() -> None:
    parameters, gradients, _ = random_run(2)
    optimizer, moved = LARS(PARAMETERS, momentum=0.0, trust=0.01, weight_decay=0.0), []
    for scale in (1.0, 1000.0):
        vectors = {"parameters": parameters.copy(), "momentum": np.zeros_like(parameters)}
        optimizer.update(vectors, scale * gradients[0], 0.5, 0)
        moved.append(LAYOUT.views(vectors["parameters"] - parameters)["conv.weight"])
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-3, atol=1e-6)
    size = np.linalg.norm(LAYOUT.views(parameters)["conv.weight"])
    np.testing.assert_allclose(np.linalg.norm(moved[0]), 0.5 * 0.01 * size, rtol=1e-3)


def test_weights_and_gradients_of_zeros_are_no_special_case() -> None:
    vectors = {"parameters": np.zeros(LAYOUT.size, np.float32), "momentum": np.zeros(LAYOUT.size, np.float32)}
    optimizer = LARS(PARAMETERS, momentum=0.0)
    optimizer.update(vectors, np.zeros(LAYOUT.size, np.float32), 0.1, 0)
    assert not vectors["parameters"].any()
    optimizer.update(vectors, np.ones(LAYOUT.size, np.float32), 0.1, 1)
    np.testing.assert_array_equal(vectors["parameters"], np.full(LAYOUT.size, -0.1, np.float32))


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"trust": 0.0}, {"weight_decay": -1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected .*0"):
        LARS(PARAMETERS, **options)
