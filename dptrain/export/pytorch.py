"""PyTorch: the source of a module that computes the same network, and the tensors of its state_dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dptrain
from dptrain.arrays.memory import Array
from dptrain.checkpoint.format import Checkpoint
from dptrain.errors import UsageError
from dptrain.export.values import normalisation
from dptrain.nn.graph import Add, Node
from dptrain.nn.layer import Layer, is_users, where
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.avg_pool import AvgPool2d
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.dropout import Dropout
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.gelu import GELU
from dptrain.nn.layers.global_pool import GlobalAvgPool2d
from dptrain.nn.layers.layer_scale import LayerScale
from dptrain.nn.layers.leaky_relu import LeakyReLU
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.layers.scale import Scale
from dptrain.nn.layers.shortcut import ZeroPadShortcut
from dptrain.nn.layers.silu import SiLU
from dptrain.nn.layers.whitening import WhiteningConv2d
from dptrain.nn.network import Network

LAYER_SCALE = '''
class LayerScale(nn.Module):
    """scale * x, with a factor for each channel."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.scale.reshape(-1, *[1] * (x.ndim - 2))

'''
FILE = '''"""A network of dptrain {version}, for PyTorch. Load its values, exported as .safetensors, by:

    from safetensors.torch import load_file
    network = Network()
    network.load_state_dict(load_file("model.safetensors"))
    network.eval()
"""

import torch
from torch import nn
from torch.nn import functional

CLASSES = {classes!r}

{helpers}
class Network(nn.Module):
    """Logits (N, {count}) of images (N, {shape}): float32, channels as in the data set, pixels 0..1."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor({mean!r}).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor({std!r}).reshape(-1, 1, 1), persistent=False)
{modules}

    def forward(self, images):
        x0 = (images - self.mean) / self.std
{steps}
        return x{last}
'''


def source(checkpoint: Checkpoint, network: Network) -> str:
    """A Python file with the class Network, a torch.nn.Module; UsageError names a layer that it cannot have."""
    mean, std = normalisation(checkpoint)
    modules, steps, shapes = [], [], [network.input_shape]
    for node in network.nodes:
        layer, channels = node.layer, shapes[node.inputs[0]][0]
        check_known(layer, STEPS, "PyTorch")
        if type(layer) in MODULES:
            modules.append(f"self.{layer.name} = {MODULES[type(layer)](layer, channels)}")
            modules += [f"self.{layer.name}.weight.requires_grad_(False)"] * (fixed_weight(layer))
        steps.append(f"x{node.output} = {STEPS[type(layer)](node)}")
        shapes += [node.shape] * (node.output + 1 - len(shapes))
    helpers = LAYER_SCALE if any(isinstance(layer, LayerScale) for layer in network.layers) else ""
    return FILE.format(
        version=dptrain.__version__,
        classes=checkpoint.origin.classes,
        helpers=helpers,
        count=network.classes,
        shape=", ".join(map(str, network.input_shape)),
        mean=list(mean),
        std=list(std),
        modules="\n".join(f"        {line}" for line in modules),
        steps="\n".join(f"        {line}" for line in steps),
        last=network.nodes[-1].output,
    )


def state_dict(network: Network, tensors: Mapping[str, Array], step: int) -> dict[str, NDArray[Any]]:
    """The arrays of the module's state_dict: dptrain's names and layouts are PyTorch's.

    A normalisation gets also the weight of ones that it does not have in dptrain, and the number of steps.
    """
    arrays: dict[str, NDArray[Any]] = dict(tensors)
    for layer in network.layers:
        if isinstance(layer, BatchNorm2d):
            arrays.setdefault(f"{layer.name}.weight", np.ones(layer.channels, np.float32))
            arrays[f"{layer.name}.num_batches_tracked"] = np.array(step, np.int64)
    return arrays


def check_known(layer: Layer, known: Mapping[type, Any], target: str) -> None:
    """UsageError for a layer that a format cannot express."""
    if type(layer) not in known or is_users(layer):
        raise UsageError(
            f"{where(layer)} has no equivalent in {target}: dptrain exports its own layers there; the values can be "
            "exported as .npz"
        )


def fixed_weight(layer: Layer) -> bool:
    """Whether the layer has a weight in PyTorch that training must not change."""
    return isinstance(layer, WhiteningConv2d) or (isinstance(layer, BatchNorm2d) and not layer.scale)


def _convolution(layer: Any, channels: int) -> str:
    defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "bias": True}
    given = {name: getattr(layer, name) for name in defaults}
    options = [f", {name}={value}" for name, value in given.items() if value != defaults[name]]
    return f"nn.Conv2d({channels}, {layer.out_channels}, {layer.kernel_size}{''.join(options)})"


MODULES: dict[type, Callable[[Any, int], str]] = {  # by layer: the module's constructor for so many input channels
    Conv2d: _convolution,
    WhiteningConv2d: _convolution,
    Linear: lambda layer, features: f"nn.Linear({features}, {layer.out_features}, bias={layer.bias})",
    BatchNorm2d: lambda layer, channels: f"nn.BatchNorm2d({channels}, eps={layer.eps!r}, momentum={layer.momentum!r})",
    LayerScale: lambda layer, channels: f"LayerScale({channels})",
    Dropout: lambda layer, channels: f"nn.Dropout({layer.p!r})",
}


def _call(template: str) -> Callable[[Node], str]:
    """The expression of a node; `{x}` is its input, `{layer}` the layer."""
    return lambda node: template.format(x=f"x{node.inputs[0]}", layer=node.layer)


def _shortcut(node: Node) -> str:
    stride, x = node.layer.stride, f"x{node.inputs[0]}"  # type: ignore[attr-defined]
    pixels = f"{x}[:, :, ::{stride}, ::{stride}]"
    return f"functional.pad({pixels}, (0, 0, 0, 0, 0, {node.shape[0]} - {x}.shape[1]))"


STEPS: dict[type, Callable[[Node], str]] = {
    **dict.fromkeys(MODULES, _call("self.{layer.name}({x})")),
    ReLU: _call("functional.relu({x})"),
    LeakyReLU: _call("functional.leaky_relu({x}, {layer.negative_slope!r})"),
    GELU: _call('functional.gelu({x}, approximate="tanh")'),
    SiLU: _call("functional.silu({x})"),
    MaxPool2d: _call("functional.max_pool2d({x}, {layer.kernel_size}, {layer.stride})"),
    AvgPool2d: _call("functional.avg_pool2d({x}, {layer.kernel_size}, {layer.stride})"),
    GlobalAvgPool2d: _call("{x}.mean(dim=(2, 3))"),
    Flatten: _call("{x}.flatten(1)"),
    Scale: _call("{layer.factor!r} * {x}"),
    ZeroPadShortcut: _shortcut,
    Add: lambda node: " + ".join(f"x{value}" for value in node.inputs),
}
