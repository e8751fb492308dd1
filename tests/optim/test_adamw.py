"""dptrain.optim.adamw: the same steps as PyTorch's AdamW, with weight decay where the tensors declare it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optimizers import LAYOUT, PARAMETERS, SHAPES, pytorch_groups, random_run

from dptrain.optim.adamw import AdamW
from dptrain.optim.optimizer import Parameter


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("beta1", "beta2", "epsilon"), [(0.9, 0.999, 1e-8), (0.5, 0.9, 1e-3), (0.0, 0.99, 1e-8)])
def test_twenty_steps_agree_with_pytorch(beta1: float, beta2: float, epsilon: float, weight_decay: float) -> None:
    torch = pytest.importorskip("torch")
    parameters, gradients, rates = random_run(7)
    tensors, groups = pytorch_groups(parameters, weight_decay)
    theirs = torch.optim.AdamW(groups, lr=1.0, betas=(beta1, beta2), eps=epsilon)
    ours = AdamW(PARAMETERS, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay)
    vectors = {"parameters": parameters, **{slot: np.zeros_like(parameters) for slot in ours.slots}}
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
        for name, view in LAYOUT.views(gradient).items():
            tensors[name].grad = torch.tensor(view.astype(np.float64))
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        ours.update(vectors, gradient, rate, step)
    for slot, theirs_name in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
        for name, view in LAYOUT.views(vectors[slot]).items():
            np.testing.assert_allclose(view, theirs.state[tensors[name]][theirs_name].numpy(), rtol=1e-5, atol=1e-6)
    for name, view in LAYOUT.views(parameters).items():
        np.testing.assert_allclose(view, tensors[name].detach().numpy(), rtol=1e-5, atol=5e-6)


def test_a_parameter_without_gradient_and_decay_keeps_its_bits() -> None:
    parameters, gradients, _ = random_run(1)
    parameters[0] = -0.0
    before = parameters.copy()
    ours = AdamW([Parameter(*one) for one in SHAPES.items()])
    vectors = {"parameters": parameters, **{slot: np.zeros_like(parameters) for slot in ours.slots}}
    for step in range(3):
        ours.update(vectors, np.zeros_like(gradients[0]), 0.1, step)
    assert parameters.tobytes() == before.tobytes()


@pytest.mark.parametrize("options", [{"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= beta < 1 and epsilon > 0"):
        AdamW(PARAMETERS, **options)
