"""Any network of dptrain, computed by PyTorch (the extra "torch"), with the same parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from dptrain.arrays.memory import Array
from dptrain.nn.network import Network


class TorchNetwork:
    """A network computed node by node; images are (N, C, H, W). `tensors` has parameters and buffers by full name.

    In training, batch norm takes its moments from each call's images; `move_running_averages` follows a step.
    """

    def __init__(self, network: Network, vectors: Mapping[str, Array]) -> None:
        self.network = network
        views = network.layout.views(vectors["parameters"]) | network.buffer_layout.views(vectors["buffers"])
        self.tensors: dict[str, Any] = {}
        for name, view in views.items():
            tensor = torch.from_numpy(view.copy())
            self.tensors[name] = tensor.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else tensor
        self.trained = [name for name, tensor in network.tensors.items() if tensor.trained]
        for name in self.trained:
            self.tensors[name].requires_grad_()
        self._moments: dict[str, list[Any]] = {}  # by layer: of the calls of a step

    def __call__(self, images: Any, training: bool) -> Any:
        values = [images, *([None] * len(self.network.nodes))]
        for node in self.network.nodes:
            values[node.output] = self._apply(node.layer, training, *(values[value] for value in node.inputs))
        return values[-1]

    def _apply(self, layer: Any, training: bool, x: Any, *more: Any) -> Any:
        weight, bias = (self.tensors.get(f"{layer.name}.{name}") for name in ("weight", "bias"))
        match type(layer).__name__:
            case "Conv2d" | "WhiteningConv2d":
                return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            case "Linear":
                return functional.linear(x, weight, bias)
            case "BatchNorm2d":
                return self._batch_norm(layer, training, x, weight, bias)
            case "ReLU":
                return functional.relu(x)
            case "GELU":
                return functional.gelu(x, approximate="tanh")
            case "Scale":
                return x * layer.factor
            case "Flatten":
                return x.flatten(1)
            case "MaxPool2d":
                return functional.max_pool2d(x, layer.kernel_size, layer.stride)
            case "GlobalAvgPool2d":
                return x.mean(dim=(2, 3))
            case "ZeroPadShortcut":
                return functional.pad(
                    x[:, :, :: layer.stride, :: layer.stride], (0, 0, 0, 0, 0, layer.out_channels - x.shape[1])
                )
            case "SiLU":
                return functional.silu(x)
            case "LeakyReLU":
                return functional.leaky_relu(x, layer.negative_slope)
            case "AvgPool2d":
                return functional.avg_pool2d(x, layer.kernel_size, layer.stride)
            case "LayerScale":
                return x * self.tensors[f"{layer.name}.scale"].reshape(1, -1, *([1] * (x.ndim - 2)))
            case "Add":
                return x + more[0]
            case other:
                raise NotImplementedError(f"{other} in PyTorch")

    def _batch_norm(self, layer: Any, training: bool, x: Any, weight: Any, bias: Any) -> Any:
        mean, variance = self.tensors[f"{layer.name}.running_mean"], self.tensors[f"{layer.name}.running_var"]
        if not training:
            return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, layer.eps)
        mean, variance = torch.zeros_like(mean), torch.zeros_like(variance)  # to be replaced by the moments
        y = functional.batch_norm(x, mean, variance, weight, bias, True, 1.0, layer.eps)
        self._moments.setdefault(layer.name, []).append((len(x), layer.momentum, mean, variance))
        return y

    def move_running_averages(self) -> None:
        """Move them towards the mean of the moments of the calls since the last time, weighted by samples."""
        for name, calls in self._moments.items():
            samples = sum(call[0] for call in calls)
            for index, buffer in ((2, "running_mean"), (3, "running_var")):
                mean = sum(call[0] * call[index] for call in calls) / samples
                self.tensors[f"{name}.{buffer}"].lerp_(mean, calls[0][1])
        self._moments.clear()
