"""dptrain.optim.clip: the norm of the whole gradient is limited, and its direction kept."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.optim.clip import clip
from dptrain.optim.optimizer import NORM_PART, norm


@pytest.mark.parametrize("limit", [0.5, 1.0, 40.0])
def test_the_global_norm_agrees_with_pytorch(limit: float) -> None:
    torch = pytest.importorskip("torch")
    gradient = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    parameters = [torch.nn.Parameter(torch.zeros(250)) for _ in range(2)]
    for parameter, part in zip(parameters, np.split(gradient, 2), strict=True):
        parameter.grad = torch.tensor(part)
    expected = torch.nn.utils.clip_grad_norm_(parameters, limit)
    assert clip(gradient, limit) == pytest.approx(float(expected))
    np.testing.assert_allclose(gradient, torch.cat([one.grad for one in parameters]).numpy(), rtol=1e-5)


def test_a_smaller_gradient_keeps_its_bits() -> None:
    gradient = np.array([3.0, -0.0, 4.0], np.float32)
    before = gradient.tobytes()
    assert clip(gradient, 5.0) == 5.0
    assert gradient.tobytes() == before


@pytest.mark.parametrize("size", [0, 1, NORM_PART, NORM_PART + 1])
def test_the_norm_has_the_precision_of_float64(size: int) -> None:
    values = np.full(size, 1e25, np.float32)  # the squares overflow in float32
    assert norm(values) == pytest.approx(np.sqrt(size) * float(np.float32(1e25)), rel=1e-12)
