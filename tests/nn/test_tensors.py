"""Tensors that layers declare, and the inputs of a pass: buffers, statistics, random draws, the mode."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import Draws
from dptrain.nn import Conv2d, Flatten, Layer, Linear, Network, Pass, Tensor, constant, he_uniform, ones, zeros

SHAPE = (2, 3, 4)


class Centre(Layer):
    """Subtracts a running mean by channel, and notes which microbatches it has seen; the scale is not trained."""

    kind = "centre"

    def __init__(self, couples: bool = False) -> None:
        self.couples_samples = couples

    def bind(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        self.channels = input_shape[0]
        return input_shape

    def tensors(self) -> list[Tensor]:
        return [
            Tensor("scale", (self.channels,), ones, trainable=False),
            Tensor("mean", (self.channels,), constant(0.5), kind="buffer", momentum=0.25),
        ]

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        if call.training:
            call.statistics["mean"][...] = x.mean(axis=(0, 1, 2))
        return (x - call.buffers["mean"]) * call.parameters["scale"], None

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array:
        call.gradients["scale"][...] = 7
        dx: Array = dy * call.parameters["scale"]
        return dx


class Noise(Layer):
    """Multiplies by draws while training."""

    kind = "noise"

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        factors = call.uniform(x.shape) if call.training else np.ones_like(x)
        return x * factors, factors

    def backward(self, dy: Array, saved: Array, call: Pass) -> Array:
        return dy * saved


def microbatch(samples: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(3, 4, samples, 2)).astype(np.float32), generator.integers(0, 3, samples)


def computed(network: Network, images: Array, labels: Array, draws: Draws) -> tuple[Array, Array]:
    """Gradient and statistics of a microbatch with the initial vectors."""
    vectors, workspace = network.initial(0), Workspace()
    gradient, statistics = np.full(network.layout.size, np.nan), np.full(network.buffer_layout.size, np.nan)
    gradient, statistics = gradient.astype(np.float32), statistics.astype(np.float32)
    prepared = network.prepare(vectors["parameters"], vectors["buffers"], workspace)
    network.loss_and_grad(prepared, images, labels, gradient, workspace, statistics=statistics, draws=draws)
    return gradient, statistics


def test_parameters_and_buffers_have_separate_layouts_and_initial_values() -> None:
    network = Network([Centre(), Flatten(), Linear(3)], SHAPE)
    assert list(network.layout.shapes) == ["centre1.scale", "linear1.weight", "linear1.bias"]
    assert network.buffer_layout.shapes == {"centre1.mean": (2,)}
    vectors = network.initial(3)
    assert vectors["buffers"].tolist() == [0.5, 0.5]
    assert vectors["parameters"][:2].tolist() == [1, 1]
    assert {vector.dtype for vector in vectors.values()} == {np.dtype(np.float32)}


def test_tensors_declare_weight_decay() -> None:
    class Scaled(Flatten):
        def tensors(self) -> list[Tensor]:
            return [Tensor("weight", (1, 1), ones, decay=False), Tensor("g", (1,), zeros, decay=True)]

    network = Network([Scaled(), Centre(), Linear(1)], (2,))
    assert {name: network.tensors[name].decays for name in network.layout.shapes} == {
        "flatten1.weight": False,
        "flatten1.g": True,
        "centre1.scale": False,
        "linear1.weight": True,
        "linear1.bias": False,
    }


@pytest.mark.parametrize("samples", [0, 5, 16, 37])
def test_statistics_are_weighted_by_samples_and_move_the_buffers(samples: int) -> None:
    network = Network([Centre(), Flatten(), Linear(3)], SHAPE)
    images, labels = microbatch(samples)
    gradient, statistics = computed(network, images, labels, Draws())
    np.testing.assert_allclose(statistics, images.sum(axis=(0, 1, 2)) / 12, rtol=1e-4)
    assert not gradient[:2].any()  # the scale is not trainable
    buffers = network.initial(0)["buffers"]
    network.update_buffers(buffers, np.array([1.5, 0.5], np.float32))
    np.testing.assert_allclose(buffers, [0.75, 0.5])


@pytest.mark.parametrize("couples", [True, False])
def test_a_layer_that_couples_samples_sees_the_whole_microbatch(couples: bool) -> None:
    seen = []

    class Seeing(Centre):
        def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
            seen.append(x.shape[-2])
            return super().forward(x, call)

    network = Network([Seeing(couples), Flatten(), Linear(3)], SHAPE)
    computed(network, *microbatch(37), Draws())
    assert seen == ([37] if couples else [16, 16, 5])


def test_draws_depend_only_on_a_samples_position() -> None:
    network = Network([Noise(), Noise(), Flatten(), Linear(3)], SHAPE)
    images, labels = microbatch(37)
    whole, _ = computed(network, images, labels, Draws(1, 2, 3, 40))
    parts = [
        computed(network, images[:, :, start : start + 13], labels[start : start + 13], Draws(1, 2, 3, 40 + start))[0]
        for start in (0, 13, 26)
    ]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-4, atol=1e-5)
    for other in (Draws(0, 2, 3, 40), Draws(1, 3, 3, 40), Draws(1, 2, 4, 40), Draws(1, 2, 3, 41)):
        assert not np.allclose(computed(network, images, labels, other)[0], whole, rtol=1e-2)


def test_draws_of_one_sample_are_equal_in_any_microbatch_and_differ_between_layers_and_calls() -> None:
    def draws(position: int, samples: int, layer: int = 0) -> list[Array]:
        call = Pass({}, {}, Workspace(), training=True, draws=Draws(position=position), layer_number=layer)
        return [call.uniform((3, 5, samples, 2)) for _ in range(2)]

    (first, second), (later, _) = draws(0, 6), draws(4, 2)
    np.testing.assert_array_equal(first[:, :, 4:], later)
    everything = np.concatenate([first, second, draws(0, 6, layer=1)[0]])
    assert everything.min() >= 0
    assert everything.max() < 1
    assert len(np.unique(everything)) > 0.999 * everything.size
    assert abs(everything.mean() - 0.5) < 0.05


def test_an_evaluation_uses_buffers_and_draws_nothing() -> None:
    network = Network([Centre(), Noise(), Flatten(), Linear(3)], SHAPE)
    vectors, (images, _) = network.initial(0), microbatch(4)
    weight, bias = list(network.layout.views(vectors["parameters"]).values())[1:]
    prepared = network.prepare(vectors["parameters"], vectors["buffers"], Workspace())
    features = (images - 0.5).transpose(2, 3, 0, 1).reshape(4, -1)
    np.testing.assert_allclose(
        network.predict(prepared, images, Workspace()), features @ weight.T + bias, rtol=1e-4, atol=1e-5
    )


class Options(Layer):
    def __init__(self, factor: Any, *, names: tuple[str, ...] = ("a",), mask: Any = None) -> None:
        self.factor = factor


@pytest.mark.parametrize(
    ("layer", "spec", "line"),
    [
        (
            Conv2d(3, 5, bias=False, algorithm="im2col"),
            {
                "type": "Conv2d",
                "out_channels": 3,
                "kernel_size": [5, 5],
                "stride": [1, 1],
                "padding": [0, 0],
                "bias": False,
                "groups": 1,
                "dilation": [1, 1],
            },
            "Conv2d(3, (5, 5), stride=(1, 1), padding=(0, 0), bias=False)",
        ),
        (Flatten(), {"type": "Flatten"}, "Flatten()"),
        (
            Options(np.float32(2)),
            {"type": "Options", "factor": 2.0, "names": ["a"], "mask": None},
            "Options(2.0)",
        ),
    ],
)
def test_a_layers_spec_holds_its_constructor_arguments(layer: Layer, spec: dict[str, Any], line: str) -> None:
    assert json.loads(json.dumps(layer.spec())) == spec
    assert repr(layer) == line


def test_specs_hold_the_hash_of_arrays_and_the_type_of_objects() -> None:
    specs = [Options(np.full(3, value), mask=object()).spec() for value in (1, 1, 2)]
    assert specs[0] == specs[1] != specs[2]
    assert specs[0]["mask"] == "object"


def test_a_networks_identity_does_not_include_its_tuning() -> None:
    networks = [
        Network([Conv2d(2, padding=1, algorithm=algorithm), Flatten(), Linear(3)], SHAPE)
        for algorithm in ("im2col", "winograd2")
    ]
    assert networks[0].spec() == networks[1].spec()
    assert networks[0].description() == networks[1].description()
    assert networks[0].tuning() != networks[1].tuning()
    assert json.loads(json.dumps(networks[0].spec())) == networks[0].spec()


def test_two_tensors_with_the_same_name_are_refused() -> None:
    class Twice(Flatten):
        def tensors(self) -> list[Tensor]:
            return [Tensor("weight", (2, 2), he_uniform(1))] * 2

    with pytest.raises(ValueError, match="a tensor named 'weight', expected a new name"):
        Network([Twice(), Linear(2)], SHAPE)


class Older(Layer):
    kind = "scale"

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Scale(Layer):
    """The same layer with arguments that were added later, one of which it keeps in another form."""

    kind = "scale"

    def __init__(self, factor: float, offset: float = 0.0, *, axes: int | tuple[int, int] = 1, **options: Any) -> None:
        self.factor, self.offset = factor, offset
        self.axes = (axes, axes) if isinstance(axes, int) else axes


def test_the_identity_of_an_older_layer_lacks_arguments_that_have_their_default_value_now() -> None:
    older = {**Older(2.0).spec(), "type": "Scale"}
    for same in (Scale(2.0), Scale(2.0, 0.0), Scale(2.0, axes=1)):
        assert older != same.spec()
        assert same.complete(older) == same.spec()
    for other in (Scale(3.0), Scale(2.0, 1.0), Scale(2.0, axes=2), Scale(2.0, axes=(1, 2)), Scale(2.0, names=1)):
        assert other.complete(older) != other.spec()
    newer = {**Scale(2.0).spec(), "added in a later version": 0}
    assert Scale(2.0).complete(newer) == newer


def test_a_network_completes_the_identity_of_each_layer() -> None:
    network = Network([Conv2d(2, 1, bias=False), Conv2d(2, 1), Flatten(), Linear(3)], SHAPE)
    older = json.loads(json.dumps(network.spec()))
    for layer in older["layers"][:2]:
        del layer["bias"]
    completed = network.complete(older)["layers"]
    assert completed[1:] == network.spec()["layers"][1:]
    assert "bias" not in completed[0]
    for broken in ({}, {"layers": 3}, {"layers": ["conv1"]}, {"layers": [{"name": "conv9"}, {}]}):
        assert network.complete(broken) == broken
