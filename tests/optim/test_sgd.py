"""dptrain.optim.sgd: the same steps as PyTorch's SGD, with weight decay on the weights only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optimizers import LAYOUT, PARAMETERS, SHAPES, pytorch_groups, random_run

from dptrain.arrays.memory import Array
from dptrain.optim.sgd import SGD


def run_ours(seed: int, *, momentum: float, nesterov: bool, weight_decay: float) -> tuple[Array, Array]:
    """Parameters and velocity after all steps."""
    parameters, gradients, rates = random_run(seed)
    optimizer = SGD(PARAMETERS, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    velocity = np.zeros_like(parameters)
    for gradient, lr in zip(gradients, rates, strict=True):
        optimizer.update({"parameters": parameters, "momentum": velocity}, gradient, lr, 0)
    return parameters, velocity


def run_pytorch(seed: int, *, momentum: float, nesterov: bool, weight_decay: float) -> tuple[Array, Array | None]:
    """Parameters and momentum buffers after all steps, as flat vectors in float64."""
    import torch  # here, so that the other tests run without it

    parameters, gradients, rates = random_run(seed)
    tensors, groups = pytorch_groups(parameters, weight_decay)
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov)
    for gradient, lr in zip(gradients, rates, strict=True):
        for name, view in LAYOUT.views(gradient).items():
            tensors[name].grad = torch.tensor(view.astype(np.float64))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    flat = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors.values()])
    if not momentum:
        return flat, None
    buffers = [optimizer.state[tensor]["momentum_buffer"].numpy().ravel() for tensor in tensors.values()]
    return flat, np.concatenate(buffers)


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.5, True)])
def test_twenty_steps_agree_with_pytorch(momentum: float, nesterov: bool, weight_decay: float) -> None:
    ours, velocity = run_ours(7, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    theirs, buffers = run_pytorch(7, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
    if buffers is not None:
        np.testing.assert_allclose(velocity, buffers, rtol=1e-5, atol=2e-6)


def test_nesterov_without_momentum_is_plain_descent() -> None:
    looking_ahead, _ = run_ours(3, momentum=0.0, nesterov=True, weight_decay=0.01)
    plain, _ = run_ours(3, momentum=0.0, nesterov=False, weight_decay=0.01)
    np.testing.assert_array_equal(looking_ahead, plain)


def test_decoupled_weight_decay_is_not_a_part_of_the_momentum() -> None:
    """parameters *= 1 - lr * weight_decay at each step; the rest is the step without weight decay."""
    parameters, gradients, rates = random_run(4)
    plain, decoupled = SGD(PARAMETERS, weight_decay=0.0), SGD(PARAMETERS, weight_decay=0.3, decoupled=True)
    velocity = np.zeros_like(parameters)
    expected = {name: view.astype(np.float64) for name, view in LAYOUT.views(parameters).items()}
    for gradient, lr in zip(gradients, rates, strict=True):
        before = {"parameters": np.zeros_like(parameters), "momentum": velocity.copy()}
        plain.update(before, gradient.copy(), lr, 0)
        for name, step in LAYOUT.views(before["parameters"]).items():
            expected[name] = expected[name] * (1 - 0.3 * lr * name.endswith("weight")) + step
        decoupled.update({"parameters": parameters, "momentum": velocity}, gradient, lr, 0)
        np.testing.assert_array_equal(velocity, before["momentum"])
    for name, view in LAYOUT.views(parameters).items():
        np.testing.assert_allclose(view, expected[name], rtol=1e-5, atol=2e-6)


def test_biases_do_not_decay() -> None:
    parameters = np.ones(LAYOUT.size, np.float32)
    zeros = np.zeros_like(parameters)
    vectors = {"parameters": parameters, "momentum": zeros.copy()}
    SGD(PARAMETERS, momentum=0.9, nesterov=True, weight_decay=0.5).update(vectors, zeros, 0.1, 0)
    after = LAYOUT.views(parameters)
    for name in SHAPES:
        # One Nesterov step from rest moves by lr * (1 + momentum) * g, here with g = 0.5 * 1.
        expected = 1 - 0.1 * 1.9 * 0.5 if name.endswith("weight") else 1.0
        np.testing.assert_allclose(after[name], expected, rtol=1e-6)


def test_update_is_in_place_and_keeps_the_precision() -> None:
    parameters, gradients, _ = random_run(1)
    before = parameters.copy()
    velocity = np.zeros_like(parameters)
    optimizer = SGD(PARAMETERS, momentum=0.9, nesterov=True, weight_decay=0.1)
    optimizer.update({"parameters": parameters, "momentum": velocity}, gradients[0], 0.1, 0)
    assert parameters.dtype == velocity.dtype == np.float32
    assert not np.array_equal(parameters, before)
    assert velocity.any()


def test_factors_scale_the_learning_rate_of_each_parameter_and_0_freezes_it() -> None:
    parameters, gradients, rates = random_run(5)
    factors = {"conv.weight": 2.0, "conv.bias": 0.0}
    faster = [replace(one, rate=factors.get(one.name, 1.0)) for one in PARAMETERS]
    plain, scaled = SGD(PARAMETERS, weight_decay=0.0), SGD(faster, weight_decay=0.0)
    assert scaled.frozen(0) == ("conv.bias",)
    vectors = [{"parameters": parameters.copy(), "momentum": np.zeros_like(parameters)} for _ in range(2)]
    plain.update(vectors[0], gradients[0].copy(), rates[0], 0)
    scaled.update(vectors[1], gradients[0].copy(), rates[0], 0)
    moved, moved_by_factor = (LAYOUT.views(one["parameters"] - parameters) for one in vectors)
    np.testing.assert_allclose(moved_by_factor["conv.weight"], 2 * moved["conv.weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(moved_by_factor["linear.weight"], moved["linear.weight"])
    assert not moved_by_factor["conv.bias"].any()
