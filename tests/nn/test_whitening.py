"""The whitening convolution: filters from patches of images, and its passes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import ready, training_pass
from selection import examples

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn import Conv2d, Flatten, Linear, Network, WhiteningConv2d
from dptrain.nn.check import central_difference
from dptrain.nn.layers import whitening
from dptrain.nn.layers.whitening import second_moments


def images(samples: int, channels: int = 3, seed: int = 0, size: int = 9) -> Array:
    """Smooth images (H, W, N, C): neighbouring pixels and channels are correlated."""
    noise = np.random.default_rng(seed).normal(size=(size + 1, size + 2, samples, channels))
    sums: Array = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise.mean(axis=3, keepdims=True)[1:, 1:]).astype(
        np.float32
    )
    return sums


def bound(layer: WhiteningConv2d, channels: int = 3) -> WhiteningConv2d:
    layer.name = "whitening1"
    layer.bind((channels, 9, 10))
    return layer


def test_the_outputs_are_uncorrelated_and_have_variance_1() -> None:
    layer, x = bound(WhiteningConv2d(eps=1e-9)), images(40)
    network = Network([layer, Flatten()], (3, 9, 10))
    vectors = network.initial(0, [x])
    prepared = network.prepare(vectors["parameters"], vectors["buffers"], Workspace())
    y = network.predict(prepared, x, Workspace()).reshape(40, 24, -1)
    rows = y.transpose(1, 0, 2).reshape(24, -1).astype(np.float64)
    np.testing.assert_allclose(rows[:12] @ rows[:12].T / rows.shape[1], np.eye(12), atol=1e-3)
    np.testing.assert_allclose(rows[12:], -rows[:12], atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 1, (2, 3)])
def test_the_filters_are_those_of_airbench_in_pytorch(kernel: int | tuple[int, int]) -> None:
    """Its function init_whitening_conv, in float64. The sign of an eigenvector is arbitrary."""
    import torch

    layer, x = bound(WhiteningConv2d(kernel, eps=5e-4)), images(30)
    height, width = layer.kernel_size
    given = torch.from_numpy(x.transpose(2, 3, 0, 1).astype(np.float64))
    patches = given.unfold(2, height, 1).unfold(3, width, 1).transpose(1, 3).reshape(-1, 3, height, width)
    flat = patches.reshape(len(patches), -1)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat), UPLO="U")
    theirs = vectors.T.reshape(-1, 3, height, width) / torch.sqrt(values.view(-1, 1, 1, 1) + 5e-4)
    ours = layer.filters([x])
    signs = np.sign((ours[: len(theirs)] * theirs.numpy()).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(ours[: len(theirs)], theirs.numpy() * signs[:, None, None, None], atol=1e-3)
    np.testing.assert_array_equal(ours[len(theirs) :], -ours[: len(theirs)])


@examples(20)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), height=st.integers(1, 3), width=st.integers(1, 3))
def test_moments_do_not_depend_on_how_the_images_are_divided(cuts: list[int], height: int, width: int) -> None:
    x, kernel = images(12), (height, width)
    whole = second_moments([x], kernel)
    assert np.array_equal(second_moments(np.split(x, sorted(cuts), axis=2), kernel), whole)
    rows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel, axis=(0, 1))
    rows = rows.reshape(-1, 3 * height * width)
    np.testing.assert_allclose(whole, rows.T @ rows / len(rows), atol=1e-3)


def test_sums_of_the_largest_values_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (whitening.LARGEST * whitening.UNIT) ** 2 * whitening.EXACT <= 1 << 53
    x = np.full((2, 700, 20, 1), 1e6, np.float32)  # clipped
    assert second_moments([x], (1, 1)).tolist() == [[whitening.LARGEST**2]]
    small = second_moments([images(30)], (2, 2))
    monkeypatch.setattr(whitening, "EXACT", 7)
    assert np.array_equal(second_moments([images(30)], (2, 2)), small)


def test_every_cpu_gives_these_bits() -> None:
    pixels = (np.arange(9 * 10 * 8 * 3) * 7919 % 251 / np.float32(64) - 2).astype(np.float32).reshape(9, 10, 8, 3)
    weight = bound(WhiteningConv2d()).filters([pixels]).astype(np.float32)
    assert hashlib.sha256(weight.tobytes()).hexdigest()[:12] == "5ca33e3b5272"


@pytest.mark.slow
def test_the_gradient_is_the_derivative_of_the_loss_and_the_filters_have_none() -> None:
    network = Network([WhiteningConv2d(), Conv2d(2, 3), Flatten(), Linear(4)], (2, 6, 5))
    generator = np.random.default_rng(5)
    parameters = generator.normal(size=network.layout.size)
    x, labels = generator.normal(size=(6, 5, 3, 2)), np.array([0, 3, 1])
    workspace, gradient = Workspace(np.float64), np.empty(network.layout.size)

    def loss() -> float:
        prepared = ready(network, parameters)
        return network.loss_and_grad(prepared, x, labels, np.empty_like(gradient), workspace).loss_sum

    expected = central_difference(loss, parameters)
    expected[network.layout.slices["whitening1.weight"]] = 0
    network.loss_and_grad(ready(network, parameters), x, labels, gradient, workspace)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert abs(gradient[network.layout.slices["whitening1.bias"]]).min() > 0


def test_passes_agree_with_pytorch() -> None:
    """The output, and the gradient of the bias."""
    import torch

    generator = np.random.default_rng(7)
    layer, workspace = bound(WhiteningConv2d(3), 2), Workspace(np.float64)
    x, weight = generator.normal(size=(9, 10, 4, 2)), generator.normal(size=(36, 2, 3, 3))
    bias = torch.tensor(generator.normal(size=36), requires_grad=True)
    expected = torch.nn.functional.conv2d(torch.tensor(x.transpose(2, 3, 0, 1).copy()), torch.tensor(weight), bias)
    dy = generator.normal(size=(7, 8, 4, 36))
    expected.backward(torch.tensor(dy.transpose(2, 3, 0, 1).copy()))
    parameters = layer.prepare({"weight": weight, "bias": bias.detach().numpy()}, workspace)
    call = training_pass(dict(parameters), workspace)
    y, saved = layer.forward(x, call)
    np.testing.assert_allclose(y.transpose(2, 3, 0, 1), expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    layer.backward(dy.copy(), saved, call)
    assert bias.grad is not None
    np.testing.assert_allclose(call.gradients["bias"], bias.grad.numpy(), rtol=1e-9)


def test_without_images_the_filters_depend_on_the_seed() -> None:
    network = Network([WhiteningConv2d(), Flatten(), Linear(2)], (3, 9, 10))
    seeds = [network.initial(seed)["parameters"] for seed in (0, 0, 1)]
    assert np.array_equal(seeds[0], seeds[1])
    assert not np.array_equal(seeds[0], seeds[2])
    assert network.needs_images
    assert not Network([Flatten(), Linear(2)], (3, 9, 10)).needs_images


def test_unsuitable_places_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"WhiteningConv2d\(\(2, 2\)\) must read the images: put it first"):
        Network([Conv2d(3), WhiteningConv2d(), Flatten()], (3, 9, 9))
    with pytest.raises(ValueError, match="eps is 0"):
        WhiteningConv2d(eps=0)
    with pytest.raises(ValueError, match="there are no images"):
        bound(WhiteningConv2d()).filters([])
