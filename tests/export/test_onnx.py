"""dptrain.export.onnx: onnxruntime computes the logits of dptrain, for every network and layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import CLASSES, MEAN, STD, as_floats, checkpoint_of, cifar10_images, logits, networks, pixels

from dptrain.checkpoint.format import Checkpoint
from dptrain.errors import CheckpointError, UsageError
from dptrain.export.onnx import content
from dptrain.nn import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Network, ReLU
from dptrain.nn.zoo import ARCHITECTURES

TOLERANCE = 1e-4
NETWORKS = networks()


def session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def computed(model: bytes, images: np.ndarray) -> np.ndarray:
    """The logits of onnxruntime for images of bytes."""
    found: np.ndarray = session(model).run(["logits"], {"images": as_floats(images)})[0]
    return found


def difference(network: Network, checkpoint: Checkpoint, images: np.ndarray) -> float:
    """The largest difference between the logits of onnxruntime and of dptrain."""
    expected = logits(network, checkpoint, images)
    assert expected.std() > 1e-3  # the logits depend on the image and class
    return float(np.abs(computed(content(checkpoint, lambda: network), images) - expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_the_logits_of_dptrain(name: str) -> None:
    network = NETWORKS[name]
    assert difference(network, checkpoint_of(network), pixels(network, 32)) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnxruntime_computes_the_logits_of_1000_test_images_with_the_zoo(name: str, cifar10_archive: Path) -> None:
    shape = (3, 32, 32)
    network = Network(ARCHITECTURES[name](shape, 10), shape)
    assert difference(network, checkpoint_of(network), cifar10_images(cifar10_archive)) < TOLERANCE


ASYMMETRIC = {
    "stride and padding": lambda: [Conv2d(4, (3, 2), stride=(2, 1), padding=(0, 2)), Flatten(), Linear(5)],
    "groups and dilation": lambda: [Conv2d(6, (2, 3), groups=3, dilation=(2, 1), bias=False), Flatten(), Linear(5)],
    "windows that overlap": lambda: [
        MaxPool2d((3, 2), stride=(2, 1)),
        AvgPool2d((2, 3), stride=1),
        Flatten(),
        Linear(5),
    ],
    "a rest that no window reads": lambda: [MaxPool2d(2), Conv2d(4), ReLU(), AvgPool2d(2), Flatten(), Linear(5)],
}


@pytest.mark.parametrize("case", ASYMMETRIC)
def test_the_two_axes_of_an_image_are_not_confused(case: str) -> None:
    network = Network(ASYMMETRIC[case](), (3, 11, 9))
    assert difference(network, checkpoint_of(network), pixels(network, 7)) < TOLERANCE


def test_averages_are_exported_where_a_checkpoint_has_them() -> None:
    network = NETWORKS["resnet20"]
    checkpoint, images = checkpoint_of(network, averaged=True), pixels(network, 8)
    raw = Checkpoint(checkpoint.state, checkpoint.origin, checkpoint.layouts)
    raw.state.vectors = {name: one for name, one in checkpoint.state.vectors.items() if "average" not in name}
    assert (
        np.abs(logits(network, raw, images) - logits(network, checkpoint_of(network, averaged=True), images)).max()
        > 0.01
    )
    assert difference(network, checkpoint_of(network, averaged=True), images) < TOLERANCE


def test_the_model_describes_its_input_and_carries_classes_and_the_hash_of_the_checkpoint() -> None:
    import onnx

    network = NETWORKS["convnet"]
    checkpoint = checkpoint_of(network)
    model = onnx.load_from_string(content(checkpoint, lambda: network))
    onnx.checker.check_model(model, full_check=True)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert tuple(json.loads(found["classes"])) == CLASSES
    assert (tuple(json.loads(found["mean"])), tuple(json.loads(found["std"]))) == (MEAN, STD)
    assert found["params_sha256"] == checkpoint.state.params_sha256
    assert found["values"] == "parameters"
    (given,) = session(model.SerializeToString()).get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["N", *network.input_shape])
    assert "pixels 0..1" in model.graph.input[0].doc_string


def test_the_batch_may_have_any_size_and_an_image_does_not_depend_on_the_others() -> None:
    network = NETWORKS["resnet9"]
    model, images = content(checkpoint_of(network), lambda: network), pixels(network, 5)
    whole = computed(model, images)
    np.testing.assert_allclose(computed(model, images[2:3]), whole[2:3], rtol=1e-5, atol=1e-6)


def test_equal_checkpoints_give_equal_bytes() -> None:
    network = NETWORKS["airbench"]
    assert content(checkpoint_of(network), lambda: network) == content(checkpoint_of(network), lambda: network)


class Doubled(ReLU):
    """A user's layer."""


def replaced() -> ReLU:
    """A layer of dptrain with another forward pass."""
    layer = ReLU()
    vars(layer)["forward"] = layer.forward
    return layer


@pytest.mark.parametrize(("layer", "name"), [(Doubled, "Doubled"), (replaced, "ReLU")])
def test_a_layer_of_the_user_is_an_error_that_names_it(layer: Callable[[], ReLU], name: str) -> None:
    network = Network([Conv2d(3), layer(), Flatten(), Linear(5)], (3, 5, 5))
    with pytest.raises(UsageError, match=rf"layer relu1 \({name}\) has no equivalent in ONNX: .*\.npz"):
        content(checkpoint_of(network), lambda: network)


def test_values_that_are_not_finite_are_refused() -> None:
    network = NETWORKS["convnet"]
    checkpoint = checkpoint_of(network)
    network.layout.views(checkpoint.state.parameters)["conv2.bias"][1] = np.nan
    with pytest.raises(CheckpointError, match=r"conv2\.bias holds nan"):
        content(checkpoint, lambda: network)


def test_a_checkpoint_without_mean_and_deviation_is_refused() -> None:
    network = NETWORKS["convnet"]
    with pytest.raises(CheckpointError, match="without the mean and deviation"):
        content(checkpoint_of(network, mean=(), std=()), lambda: network)
