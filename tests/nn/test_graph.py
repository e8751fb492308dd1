"""Networks with branches, and errors of layers that break a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import ready

from dptrain.arrays.memory import Array, Workspace
from dptrain.errors import ModelError
from dptrain.nn import Conv2d, Flatten, Layer, Linear, MaxPool2d, Network, Pass, ReLU, Residual, Sequential, check_layer

SHAPE = (2, 6, 5)


class InPlace(Layer):
    """Twice its input; overwrites dy, as a layer may."""

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return 2 * x, None

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array:
        dy *= 2
        return dy


@pytest.mark.parametrize(
    "part",
    [
        Residual([Conv2d(2, padding=1), ReLU(), Conv2d(2, padding=1)]),
        Residual([Conv2d(3, stride=2, padding=1), ReLU()], shortcut=Conv2d(3, 1, stride=2)),
        Residual(InPlace(), InPlace()),
        Residual([]),
        [ReLU(), Sequential([Conv2d(2, padding=1), Residual([Residual(InPlace()), ReLU()], MaxPool2d(1))]), Flatten()],
    ],
    ids=["identity", "shortcut", "in place", "empty", "nested"],
)
def test_the_gradient_of_a_branched_network_is_its_derivative(part: Any) -> None:
    check_layer(part, SHAPE)


def test_a_residual_networks_layers_have_names_numbers_and_inputs() -> None:
    network = Network([Conv2d(2, padding=1), Residual(Conv2d(2, padding=1), ReLU()), Flatten(), Linear(3)], SHAPE)
    assert list(network.layout.shapes)[:4] == ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    assert [(layer["name"], layer["inputs"]) for layer in network.spec()["layers"]] == [
        ("conv1", ["input"]),
        ("conv2", ["conv1"]),
        ("relu1", ["conv1"]),
        ("add1", ["conv2", "relu1"]),
        ("flatten1", ["add1"]),
        ("linear1", ["flatten1"]),
    ]
    assert network.description()[3:5] == [
        "relu1: ReLU() of conv1 -> (2, 6, 5)",
        "add1: Add() of conv2, relu1 -> (2, 6, 5)",
    ]


def test_a_nested_sequential_is_the_same_network_as_a_plain_list() -> None:
    networks = [Network(parts, SHAPE) for parts in ([Flatten(), Linear(3)], Sequential([[Flatten()], Linear(3)]))]
    assert networks[0].spec() == networks[1].spec()


def test_a_residual_agrees_with_pytorch() -> None:
    import torch

    network = Network([Residual([Conv2d(2, padding=1), ReLU()], Conv2d(2, 1)), Flatten(), Linear(3)], SHAPE)
    generator = np.random.default_rng(0)
    parameters = generator.normal(size=network.layout.size)
    images, labels = generator.normal(size=(6, 5, 4, 2)), np.array([0, 2, 1, 1])
    gradient, workspace = np.empty(network.layout.size), Workspace(np.float64)
    outcome = network.loss_and_grad(ready(network, parameters), images, labels, gradient, workspace)
    p = {name: torch.tensor(view.copy(), requires_grad=True) for name, view in network.layout.views(parameters).items()}
    x, f = torch.tensor(images.transpose(2, 3, 0, 1)), torch.nn.functional
    body = f.relu(f.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1))
    added = body + f.conv2d(x, p["conv2.weight"], p["conv2.bias"])
    logits = f.linear(added.flatten(1), p["linear1.weight"], p["linear1.bias"])
    loss = f.cross_entropy(logits, torch.tensor(labels), reduction="sum")
    loss.backward()
    assert outcome.loss_sum == pytest.approx(loss.item(), rel=1e-12)
    for name, view in network.layout.views(gradient).items():
        np.testing.assert_allclose(view, p[name].grad, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Residual(Conv2d(3, padding=1)), Flatten(), Linear(3)], r"\(3, 6, 5\) and \(2, 6, 5\), expected equal shapes"),
        ([Flatten(), "linear"], "the network has 'linear' in it, expected layers, Sequential or Residual"),
        ([Flatten(), Linear], "expected layers"),
        ("linear", "expected layers"),
        (None, "expected layers"),
    ],
)
def test_parts_that_do_not_make_a_network_are_refused(parts: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Network(parts, SHAPE)


class Rules(Layer):
    """Breaks one rule."""

    kind = "mine"

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def bind(self, input_shape: tuple[int, ...]) -> Any:
        return {"bind": None, "bind extent": (3, 0)}.get(self.rule, input_shape)

    def forward(self, x: Array, call: Pass) -> Any:
        if self.rule == "write x":
            x *= 2
        return {"one value": x, "shape": (x[:-1], None), "no array": (None, None)}.get(self.rule, (x, None))

    def backward(self, dy: Array, saved: Any, call: Pass) -> Any:
        return {"dx shape": dy[:-1], "no dx": None, "dx type": 3.0}.get(self.rule, dy)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("bind", r"layer mine1 \(Rules\): bind returned None, expected the shape of an output sample"),
        ("bind extent", r"bind returned \(3, 0\)"),
        ("one value", r"layer mine1 \(Rules\): forward returned float64 \(6, 5, 3, 2\), expected two values"),
        (
            "shape",
            r"mine1 \(Rules\): the output of forward is float64 \(5, 5, 3, 2\), expected an array of shape \(6, 5,",
        ),
        ("no array", "the output of forward is None"),
        ("dx shape", r"mine1 \(Rules\): backward returned float64 \(5, 5, 3, 2\), expected the gradient of its input"),
        ("no dx", "backward returned None, expected the gradient of its input"),
        ("dx type", "backward returned an object of type float, expected"),
    ],
)
def test_an_error_names_the_users_layer_and_the_rule_it_broke(rule: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_layer(Rules(rule), SHAPE)


def test_x_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        check_layer(Rules("write x"), SHAPE)


def test_a_gradient_that_is_wrong_in_one_place_is_named_with_its_position() -> None:
    class Wrong(Linear):
        def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
            dx = super().backward(dy, saved, call)
            call.gradients["weight"][1, 2] += 0.5
            return dx

    with pytest.raises(
        AssertionError, match=r"Wrong\(2\): the gradient of linear1.weight is .* at \(1, 2\), but .*1 of 6"
    ):
        check_layer(Wrong(2), (3,))


def test_a_layer_with_different_results_on_repetition_is_found() -> None:
    class Counting(Layer):
        calls: list[int] = []  # noqa: RUF012 - the mistake

        def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
            self.calls.append(0)
            return x * len(self.calls), None

    with pytest.raises(AssertionError, match="is not the same when computed twice"):
        check_layer(type("Bad", (Counting,), {"backward": lambda self, dy, saved, call: dy})(), (3,))
