"""Networks that couple samples, computed segment by segment in blocks, against one pass of the whole microbatch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from every_layer import LAYERS, build
from networks import ready
from selection import quick_first

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    Pass,
    ReLU,
    Residual,
    WhiteningConv2d,
)
from dptrain.nn.check import CheckedRunner
from dptrain.nn.graph import Part
from dptrain.nn.layer import Runner
from dptrain.nn.loss import softmax_cross_entropy

SHAPE = (2, 6, 7)
DRAWS = Draws(1, 2, 3, 40)


class Centred(Layer):
    """A user's layer that couples samples: x less its mean over the microbatch."""

    kind = "centred"
    couples_samples = True

    def __init__(self) -> None:
        self.seen: list[int] = []

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        self.seen.append(x.shape[-2])
        return x - x.mean(axis=tuple(range(x.ndim - 1))), None

    def backward(self, dy: Array, saved: None, call: Pass) -> Array:
        dx: Array = dy - dy.mean(axis=tuple(range(dy.ndim - 1)))
        return dx


class Remembering(Layer):
    """A user's layer that finds what it needs in the workspace again."""

    kind = "remembering"

    def forward(self, x: Array, call: Pass) -> tuple[Array, None]:
        np.copyto(call.workspace.array(self.name, "x", x.shape), x)
        return x * x, None

    def backward(self, dy: Array, saved: None, call: Pass) -> Array:
        x, dx = (call.workspace.array(self.name, purpose, dy.shape) for purpose in ("x", "dx"))
        np.copyto(dx, 2 * dy * x)
        return dx


class CentredSquare(Centred):
    """A user's layer that couples samples and keeps its input."""

    kind = "centred_square"

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return super().forward(x * x, call)[0], x

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array:
        dx: Array = 2 * saved * super().backward(dy, None, call)
        return dx


class SquareNorm(BatchNorm2d):
    """A user's normalisation of the squares: `collect` of its base class knows nothing of them."""

    kind = "square_norm"

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        y, saved = super().forward(x * x, call)
        return y, (x, saved)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        x, of_squares = saved
        dx = super().backward(dy, of_squares, call)
        return None if dx is None else 2 * x * dx


def norm_block(channels: int) -> list[Layer]:
    return [Conv2d(channels, 3, padding=1), BatchNorm2d(), ReLU(), Conv2d(channels, 3, padding=1), BatchNorm2d()]


NETWORKS: dict[str, Any] = {
    "chain": lambda: [*norm_block(3), ReLU(), MaxPool2d(), Flatten()],
    "norm first": lambda: [BatchNorm2d(), BatchNorm2d(scale=False), Flatten()],
    "norms on both branches": lambda: [Residual(norm_block(3), [Conv2d(3, 1), BatchNorm2d()]), ReLU(), Flatten()],
    "identity across segments": lambda: [Conv2d(3), ReLU(), Residual(norm_block(3)), Residual([]), ReLU(), Flatten()],
    "one value for three norms": lambda: [Residual(BatchNorm2d(), Residual(BatchNorm2d(), BatchNorm2d())), Flatten()],
    "dropout": lambda: [Dropout(0.3), Conv2d(3), BatchNorm2d(), Dropout(0.2), Dropout(0.4), Flatten()],
    "other convolutions": lambda: [
        *(WhiteningConv2d(), Conv2d(4, 1), BatchNorm2d(), Conv2d(4, 1, bias=False), Conv2d(4, groups=4, padding=1)),
        *(BatchNorm2d(), Conv2d(4, groups=4), Conv2d(4, 2, groups=2), BatchNorm2d(), Flatten()),
    ],
    "user's first": lambda: [Centred(), Conv2d(3), BatchNorm2d(), ReLU(), Flatten()],
    "user's between": lambda: [Conv2d(3), Residual(norm_block(3), Centred()), Remembering(), Centred(), Flatten()],
    "a value that a user's layer keeps": lambda: [
        *(Conv2d(3), Residual([CentredSquare(), Conv2d(3, 1), BatchNorm2d()]), Flatten())
    ],
    "user's normalisation": lambda: [Conv2d(3), SquareNorm(), Conv2d(3), BatchNorm2d(), Flatten()],
    "user's memory": lambda: [Conv2d(3), Remembering(), BatchNorm2d(), Flatten()],
}


def in_blocks(network: Network, block: int) -> Network:
    """The network, with this block in every segment that is computed in blocks."""
    segments = network.plan.segments
    network.plan.segments = [replace(one, block=one.block and block + number) for number, one in enumerate(segments)]
    return network


def microbatch(samples: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    return generator.normal(1, 2, size=array_shape(SHAPE, samples)), generator.integers(0, 3, samples)


def vectors_of(network: Network) -> tuple[Array, Array]:
    generator = np.random.default_rng(1)
    return generator.normal(size=network.layout.size), np.abs(generator.normal(size=network.buffer_layout.size)) + 0.5


def at_once(network: Network, images: Array, labels: Array) -> tuple[Array, Array, float]:
    """Gradient, statistics and loss by one pass through the graph."""
    parameters, buffers = vectors_of(network)
    gradient, statistics, workspace = np.zeros_like(parameters), np.zeros_like(buffers), Workspace(np.float64)
    passes = network.passes(ready(network, parameters, buffers), workspace, gradient, statistics, DRAWS)
    logits, saved = network.graph.forward(images, passes, Runner())
    losses, dlogits = softmax_cross_entropy(logits, labels, workspace)
    network.graph.backward(dlogits, saved, passes, Runner())
    return gradient, statistics * len(labels), float(losses.sum())


def computed(
    network: Network, images: Array, labels: Array, workspace: Workspace, runner: Runner | None = None
) -> tuple[Array, Array, float]:
    """The same by `loss_and_grad`."""
    parameters, buffers = vectors_of(network)
    gradient, statistics = np.full_like(parameters, np.nan), np.full_like(buffers, np.nan)
    outcome = network.loss_and_grad(
        ready(network, parameters, buffers),
        images,
        labels,
        gradient,
        workspace,
        statistics=statistics,
        draws=DRAWS,
        runner=runner or Runner(),
    )
    return gradient, statistics, outcome.loss_sum


def assert_blocks_do_not_change_results(parts: Part, block: int) -> None:
    network, workspace = in_blocks(Network(parts, SHAPE), block), Workspace(np.float64)
    for samples in (13, 5, 13):  # the memory of a larger microbatch is used again
        images, labels = microbatch(samples)
        expected = at_once(network, images, labels)
        for _ in range(2):
            found = computed(network, images, labels, workspace)
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-8, atol=1e-9)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-8, atol=1e-9)
            assert found[2] == pytest.approx(expected[2], rel=1e-9)


@quick_first("block", [1, 4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_give_the_results_of_the_whole_microbatch(name: str, block: int) -> None:
    assert_blocks_do_not_change_results([*NETWORKS[name](), Linear(3)], block)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_keeps_what_its_backward_pass_needs(layer: str) -> None:
    """Other blocks of the segment are computed between the two passes of a block."""
    assert_blocks_do_not_change_results([*build(SHAPE, 3, layer=layer), Centred()], 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_microbatch_gives_zeros(name: str) -> None:
    found = computed(Network([*NETWORKS[name](), Linear(3)], SHAPE), *microbatch(0), Workspace(np.float64))
    assert not found[0].any()
    assert not found[1].any()
    assert found[2] == 0


def test_checked_layers_get_blocks_of_any_size() -> None:
    """The blocks of norm1's forward pass have 5 samples, those of its backward pass 4."""
    network = in_blocks(Network([Conv2d(3), BatchNorm2d(), Remembering(), Flatten(), Linear(3)], SHAPE), 4)
    batch = microbatch(13)
    expected = computed(network, *batch, Workspace(np.float64))
    found = computed(network, *batch, Workspace(np.float64), CheckedRunner(network))
    np.testing.assert_array_equal(found[0], expected[0])


def test_a_users_normalisation_is_not_synchronized() -> None:
    with pytest.raises(ValueError, match=r"layer square_norm1 \(SquareNorm\): a subclass .* omit sync=True"):
        Network([Conv2d(3), SquareNorm(sync=True), Flatten(), Linear(3)], SHAPE)


def test_a_users_layer_that_couples_samples_gets_the_whole_microbatch() -> None:
    layer = Centred()
    network = in_blocks(Network([Conv2d(3), BatchNorm2d(), layer, ReLU(), Flatten(), Linear(3)], SHAPE), 4)
    images, labels = microbatch(13)
    computed(network, images, labels, Workspace(np.float64))
    assert layer.seen == [13]


def test_each_block_passes_through_its_segment_before_the_next() -> None:
    calls: list[tuple[str, str, int]] = []

    class Listing(Runner):
        def forward(self, layer: Layer, x: Array, call: Pass) -> Any:
            calls.append(("forward", layer.name, x.shape[-2]))
            return super().forward(layer, x, call)

        def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Any:
            calls.append(("backward", layer.name, dy.shape[-2]))
            return super().backward(layer, dy, saved, call)

        def complete(self, layer: Layer) -> None:
            calls.append(("complete", layer.name, 0))

    parts = [Conv2d(3), Dropout(), BatchNorm2d(), Conv2d(2), Flatten(), Linear(3)]
    network = in_blocks(Network(parts, SHAPE), 4)
    computed(network, *microbatch(6), Workspace(np.float64), Listing())
    last = ["norm1", "conv2", "flatten1", "linear1"]
    assert calls == [
        *(("forward", name, block) for block in (4, 2) for name in ("conv1", "dropout1")),
        *(("forward", name, 5) for name in last),
        *(("backward", name, 5) for name in last[:0:-1]),
        *(("forward", name, 1) for name in last),
        *[("backward", "linear1", 1), ("complete", "linear1", 0), ("backward", "flatten1", 1)],
        *[("complete", "flatten1", 0), ("backward", "conv2", 1), ("complete", "conv2", 0), ("complete", "norm1", 0)],
        *[("backward", "norm1", 4), ("backward", "dropout1", 4), ("backward", "conv1", 4), ("backward", "norm1", 2)],
        *[("backward", "dropout1", 2), ("complete", "dropout1", 0), ("backward", "conv1", 2), ("complete", "conv1", 0)],
    ]


def test_a_block_is_larger_for_small_maps_with_wide_channels() -> None:
    parts = [Conv2d(16, padding=1), BatchNorm2d(), MaxPool2d(), Conv2d(256, padding=1), MaxPool2d(), BatchNorm2d()]
    network = Network([*parts, Conv2d(256, padding=1), BatchNorm2d(), Flatten(), Linear(10)], (3, 32, 32))
    assert [segment.block for segment in network.plan.segments] == [16, 16, 256, 64]
