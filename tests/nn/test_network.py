"""The whole network: against PyTorch, against central differences, and its guarantees."""

from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.check import central_difference
from dptrain.nn.layer import Layer, Pass
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.network import Network
from dptrain.nn.tensor import Tensor, zeros
from dptrain.nn.zoo import convnet

SHAPE = (3, 32, 32)


class Scale(Layer):
    """A layer as a user would write it."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


def torch_convnet(network: Network, parameters: Array) -> Any:
    """The same network in PyTorch (the extra "torch"), with the same parameters."""
    import torch

    nn = torch.nn
    same = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4096, 10),
    )
    views = network.layout.views(parameters)
    with torch.no_grad():
        for theirs, ours in zip(same.parameters(), views.values(), strict=True):
            theirs.copy_(torch.from_numpy(ours.copy()))
    return same


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_convnet_agrees_with_pytorch(fused: bool) -> None:
    import torch

    generator = np.random.default_rng(1)
    network = Network(convnet(SHAPE, 10), SHAPE, fused=fused)
    assert network.layout.size == 60_362
    parameters = network.initial(3)["parameters"]
    parameters += 0.05 * generator.normal(size=parameters.shape).astype(np.float32)  # biases too
    images = generator.normal(size=(16, *SHAPE)).astype(np.float32)
    labels = generator.integers(0, 10, 16)
    theirs = torch_convnet(network, parameters)
    logits = theirs(torch.from_numpy(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    loss.backward()

    ours = np.ascontiguousarray(images.transpose(2, 3, 0, 1))
    gradient = np.empty_like(parameters)
    outcome = network.loss_and_grad(ready(network, parameters), ours, labels, gradient, Workspace())
    assert outcome.loss_sum == pytest.approx(loss.item(), rel=1e-5)
    assert outcome.correct == int((logits.argmax(dim=1).numpy() == labels).sum())
    predicted = network.predict(ready(network, parameters), ours, Workspace())
    assert relative_error(predicted, logits.detach().numpy()) < 1e-4
    for parameter, (name, view) in zip(theirs.parameters(), network.layout.views(gradient).items(), strict=True):
        assert parameter.grad is not None
        assert relative_error(view, parameter.grad.numpy()) < 1e-4, name


def relative_error(ours: Array, theirs: Array) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_the_whole_gradient_is_the_derivative_of_the_summed_loss() -> None:
    """Central differences in float64 through every layer at once, odd sizes, stride and padding."""
    shape = (2, 7, 9)
    net = [Conv2d(3, (3, 2), stride=(1, 2), padding=(1, 0)), ReLU(), MaxPool2d(2), Conv2d(2, 2), Flatten(), Linear(4)]
    network = Network(net, shape)
    generator = np.random.default_rng(5)
    parameters = generator.normal(size=network.layout.size)
    images, labels = generator.normal(size=array_shape(shape, 3)), np.array([0, 3, 1])
    workspace, gradient = Workspace(np.float64), np.empty(network.layout.size)

    def loss() -> float:
        return network.loss_and_grad(
            ready(network, parameters), images, labels, np.empty_like(gradient), workspace
        ).loss_sum

    expected = central_difference(loss, parameters)
    network.loss_and_grad(ready(network, parameters), images, labels, gradient, workspace)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_samples_gradient_does_not_depend_on_its_neighbours() -> None:
    network = Network(convnet((1, 8, 8), 3, widths=[4]), (1, 8, 8))
    generator = np.random.default_rng(2)
    images, labels = generator.normal(size=(8, 8, 5, 1)).astype(np.float32), generator.integers(0, 3, 5)
    parameters, workspace = network.initial(0)["parameters"], Workspace()
    whole, part = np.empty((2, network.layout.size), np.float32)
    network.loss_and_grad(ready(network, parameters), images, labels, whole, workspace)
    total = np.zeros(network.layout.size)
    for sample in range(5):
        one = np.ascontiguousarray(images[..., sample : sample + 1, :])
        network.loss_and_grad(ready(network, parameters), one, labels[sample : sample + 1], part, workspace)
        total += part
    np.testing.assert_allclose(whole, total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [17, 32, 41])
def test_a_large_microbatch_is_the_sum_of_its_blocks(samples: int) -> None:
    network = Network(convnet((1, 8, 8), 3, widths=[4]), (1, 8, 8))
    generator = np.random.default_rng(2)
    images, labels = generator.normal(size=(8, 8, samples, 1)).astype(np.float32), generator.integers(0, 3, samples)
    parameters = network.initial(0)["parameters"]
    whole, part = np.full((2, network.layout.size), np.nan, np.float32)
    outcome = network.loss_and_grad(ready(network, parameters), images, labels, whole, Workspace())
    total, loss_sum, correct = np.zeros_like(part), 0.0, 0
    assert network.block == 16
    for start in range(0, samples, 16):
        block = np.ascontiguousarray(images[..., start : start + 16, :])
        one = network.loss_and_grad(ready(network, parameters), block, labels[start : start + 16], part, Workspace())
        total, loss_sum, correct = total + part, loss_sum + one.loss_sum, correct + one.correct
    np.testing.assert_array_equal(whole, total)
    assert (outcome.loss_sum, outcome.correct) == (loss_sum, correct)


def test_a_users_layer_may_add_to_its_gradient_in_every_block() -> None:
    class Adding(Linear):
        def backward(self, dy: Array, saved: Array, call: Pass) -> None:
            call.gradients["weight"][...] += dy.T @ saved
            call.gradients["bias"][...] += dy.sum(axis=0)

    generator = np.random.default_rng(3)
    images, labels = generator.normal(size=(4, 4, 70, 2)).astype(np.float32), generator.integers(0, 3, 70)
    gradients = []
    for last in (Adding(3), Linear(3)):
        network = Network([Flatten(), last], (2, 4, 4))
        gradients.append(np.empty(network.layout.size, np.float32))
        parameters, workspace = network.initial(0)["parameters"], Workspace()
        for _ in range(2):  # the second time in used memory
            network.loss_and_grad(ready(network, parameters), images, labels, gradients[-1], workspace)
        assert len(network.plan.segments[0].rows(70)) == 3
    added, written = gradients
    np.testing.assert_allclose(added, written, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("widths", "block"), [([32, 64], 16), ([8, 1024, 1024], 32)])
def test_more_parameters_make_larger_blocks(widths: list[int], block: int) -> None:
    network = Network(convnet(SHAPE, 10, widths=widths), SHAPE)
    assert network.block == block
    assert [segment.block for segment in network.plan.segments] == [block]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "second", [{"kernel_size": 5, "padding": 2}, {"stride": 2}, {"algorithm": "winograd2"}, {"algorithm": "winograd4"}]
)
def test_earlier_use_of_a_workspace_does_not_change_results(second: dict[str, Any], fused: bool) -> None:
    """A larger evaluation between two steps moves arrays; views of their old place must not be used."""
    shape = (2, 12, 10)
    layers = [Conv2d(3, padding=1), ReLU(), MaxPool2d(), Conv2d(4, **second), ReLU(), MaxPool2d(), Flatten(), Linear(3)]
    network = Network(layers, shape, fused=fused)
    generator = np.random.default_rng(4)
    parameters, used = network.initial(0)["parameters"], Workspace()
    labels = generator.integers(0, 3, 4)
    found, expected = np.empty((2, network.layout.size), np.float32)
    for evaluated in (0, 8, 5):
        images = generator.normal(size=array_shape(shape, 4)).astype(np.float32)
        network.predict(
            ready(network, parameters), generator.normal(size=array_shape(shape, evaluated)).astype(np.float32), used
        )
        network.loss_and_grad(ready(network, parameters), images, labels, found, used)
        network.loss_and_grad(ready(network, parameters), images, labels, expected, Workspace())
        np.testing.assert_array_equal(found, expected)


def test_layers_before_the_first_parameter_have_no_backward_pass() -> None:
    class Untrained(Flatten):
        def backward(self, dy: Array, saved: Any, call: Pass) -> Array:
            raise AssertionError("this gradient is not needed")

    network = Network([Untrained(), Linear(2)], (1, 2, 2))
    gradient = np.empty(network.layout.size, np.float32)
    network.loss_and_grad(
        ready(network, network.initial(0)["parameters"]),
        np.ones((2, 2, 3, 1), np.float32),
        np.array([0, 1, 0]),
        gradient,
        Workspace(),
    )
    assert gradient.any()


def test_an_empty_microbatch_has_a_zero_gradient() -> None:
    network = Network(convnet((1, 8, 8), 3, widths=[4]), (1, 8, 8))
    gradient = np.full(network.layout.size, np.nan, np.float32)
    nothing = np.empty((8, 8, 0, 1), np.float32)
    outcome = network.loss_and_grad(
        ready(network, network.initial(0)["parameters"]), nothing, np.empty(0, int), gradient, Workspace()
    )
    assert (outcome.loss_sum, outcome.correct) == (0.0, 0)
    assert not gradient.any()


def test_initial_weights_have_hes_variance_or_a_small_one_in_the_last_layer_and_biases_are_zero() -> None:
    network = Network(convnet(SHAPE, 10, widths=[64, 128]), SHAPE)
    views = network.layout.views(network.initial(0)["parameters"])
    variances = {"conv1": 2 / (3 * 9), "conv2": 2 / (64 * 9), "linear1": 1 / (300 * 128 * 64)}
    for layer, variance in variances.items():
        weight = views[f"{layer}.weight"]
        spread = 4 / np.sqrt(2 * weight.size)  # four standard errors of a standard deviation
        assert weight.std() == pytest.approx(np.sqrt(variance), rel=spread), layer
        assert abs(weight.mean()) < 4 * weight.std() / np.sqrt(weight.size), layer
        assert not views[f"{layer}.bias"].any()


def test_initial_parameters_depend_only_on_the_seed() -> None:
    first, again, other = (Network(convnet(SHAPE, 10), SHAPE).initial(seed)["parameters"] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_layers_are_named_by_kind_and_number() -> None:
    network = Network(convnet(SHAPE, 10), SHAPE)
    assert list(network.layout.shapes) == [
        "conv1.weight",
        "conv1.bias",
        "conv2.weight",
        "conv2.bias",
        "linear1.weight",
        "linear1.bias",
    ]
    assert network.description()[0] == "input (3, 32, 32)"
    assert network.description()[-1] == "linear1: Linear(10) -> (10,)"


def test_a_users_layer_is_described_by_its_arguments() -> None:
    """With values, not memory addresses: ranks and resumed runs compare these lines."""
    lines = [Network([Scale(factor), Flatten(), Linear(2)], (1, 2, 2)).description()[1] for factor in (2.0, 2.0, 3.0)]
    assert lines[0] == lines[1] == "layer1: Scale(2.0) -> (1, 2, 2)"
    assert lines[2] != lines[0]


class Weighted(Layer):
    """A parameter of the given name and shape, which adds to its gradient instead of setting it."""

    def __init__(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        self.parameter, self.shape, self.kind = name, shape, kind

    def tensors(self) -> list[Tensor]:
        return [Tensor(self.parameter, self.shape, zeros)]

    def forward(self, x: Array, call: Pass) -> tuple[Array, Array]:
        return x * call.parameters[self.parameter], x

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array:
        call.gradients[self.parameter] += (dy * saved).sum()
        dx: Array = dy * call.parameters[self.parameter]
        return dx


def test_a_layer_may_add_to_its_gradient() -> None:
    network = Network([Flatten(), Linear(2), Weighted("slope", (1,), "slope")], (1, 2, 2))
    parameters, images = network.initial(0)["parameters"] + 1, np.ones((2, 2, 3, 1), np.float32)
    gradients = np.full((2, network.layout.size), 7, np.float32)
    for gradient in gradients:
        network.loss_and_grad(ready(network, parameters), images, np.array([0, 1, 0]), gradient, Workspace())
    network.loss_and_grad(ready(network, parameters), images, np.array([0, 1, 0]), gradients[1], Workspace())
    assert np.array_equal(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("name", "shape", "kind", "message"),
    [
        ("a.b", (1,), "mine", "a tensor named 'a.b'"),
        ("a", (), "mine", r"shape \(\), expected extents of at least 1"),
        ("a", (0,), "mine", r"shape \(0,\), expected extents of at least 1"),
        ("a", (1,), "my/layer", "the kind 'my/layer', expected letters"),
        ("a", (1,), "conv1", "the kind 'conv1', expected letters"),
    ],
)
def test_names_and_shapes_that_a_checkpoint_cannot_hold_are_refused(
    name: str, shape: tuple[int, ...], kind: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Network([Flatten(), Weighted(name, shape, kind), Linear(2)], (1, 2, 2))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Conv2d(3)], "expected one logit a class"),
        ([Flatten()], "no parameters"),
        ([Linear(3)], "put Flatten"),
        ([Flatten(), *[Linear(4)] * 2], "is in the network twice"),
    ],
)
def test_layers_that_do_not_make_a_network_are_refused(layers: list[Layer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(layers, (1, 5, 5))
