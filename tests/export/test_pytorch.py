"""dptrain.export.pytorch and safetensors: the printed module loads the values strictly and computes the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import CLASSES, as_floats, checkpoint_of, cifar10_images, logits, networks, pixels

from dptrain.checkpoint.format import Checkpoint
from dptrain.errors import UsageError
from dptrain.export import safetensors
from dptrain.export.pytorch import source
from dptrain.nn import Conv2d, Flatten, Linear, Network, ReLU
from dptrain.nn.zoo import ARCHITECTURES

NETWORKS = networks()


def module_of(checkpoint: Checkpoint, network: Network) -> Any:
    """The printed module with the values of the .safetensors file."""
    from safetensors.torch import load

    names: dict[str, Any] = {}
    exec(compile(source(checkpoint, network), "printed.py", "exec"), names)
    module = names["Network"]()
    module.load_state_dict(load(safetensors.content(checkpoint, lambda: network)), strict=True)
    assert names["CLASSES"] == checkpoint.origin.classes
    return module.eval()


def difference(network: Network, checkpoint: Checkpoint, images: np.ndarray) -> float:
    """The largest difference between the logits of PyTorch and of dptrain."""
    import torch

    with torch.no_grad():
        found = module_of(checkpoint, network)(torch.from_numpy(as_floats(images))).numpy()
    return float(np.abs(found - logits(network, checkpoint, images)).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_printed_module_computes_the_logits_of_dptrain(name: str) -> None:
    network = NETWORKS[name]
    assert difference(network, checkpoint_of(network), pixels(network, 16)) < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_printed_module_computes_the_logits_of_1000_test_images_with_the_zoo(
    name: str, cifar10_archive: Path
) -> None:
    shape = (3, 32, 32)
    network = Network(ARCHITECTURES[name](shape, 10), shape)
    assert difference(network, checkpoint_of(network), cifar10_images(cifar10_archive)) < 1e-4


def test_the_printed_file_imports_torch_alone() -> None:
    network = NETWORKS["resnet20"]
    lines = source(checkpoint_of(network), network).splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports == ["import torch", "from torch import nn", "from torch.nn import functional"]


def test_what_dptrain_does_not_train_is_fixed_in_pytorch() -> None:
    network = NETWORKS["airbench"]
    module = module_of(checkpoint_of(network), network)
    fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    norms = {f"{layer.name}.weight" for layer in network.layers if layer.kind == "norm"}
    assert fixed == {"whitening1.weight"} | norms
    assert {name for name, _ in module.named_parameters()} - norms == network.layout.shapes.keys()


def test_averages_are_exported_where_a_checkpoint_has_them() -> None:
    network = NETWORKS["resnet20"]
    assert difference(network, checkpoint_of(network, averaged=True), pixels(network, 8)) < 1e-4


def test_the_file_has_classes_normalisation_and_the_specification_of_the_network(tmp_path: Any) -> None:
    from safetensors import safe_open

    network = NETWORKS["resnet20"]
    checkpoint = checkpoint_of(network)
    (tmp_path / "model.safetensors").write_bytes(safetensors.content(checkpoint, lambda: network))
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        found = file.metadata()
    assert tuple(json.loads(found["classes"])) == CLASSES
    assert json.loads(found["spec"]) == network.spec()
    assert found["params_sha256"] == checkpoint.state.params_sha256
    assert {"mean", "std", "input_shape", "values", "step", "data", "dptrain"} < found.keys()


def test_equal_checkpoints_give_equal_bytes() -> None:
    network = NETWORKS["convnet"]
    contents = {safetensors.content(checkpoint_of(network), lambda: network) for _ in range(4)}
    assert len(contents) == 1


class Doubled(ReLU):
    """A user's layer."""


def test_a_layer_of_the_user_is_an_error_that_names_it() -> None:
    network = Network([Conv2d(3), Doubled(), Flatten(), Linear(5)], (3, 5, 5))
    with pytest.raises(UsageError, match=r"layer relu1 \(Doubled\) has no equivalent in PyTorch"):
        safetensors.content(checkpoint_of(network), lambda: network)
