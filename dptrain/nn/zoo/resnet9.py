"""The nine-layer residual network of Page 2019, which won the DAWNBench competition."""

from __future__ import annotations

from dptrain.arrays.layout import Shape
from dptrain.nn.graph import Part, Residual
from dptrain.nn.layer import Layer, whole_number
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.pool import MaxPool2d
from dptrain.nn.layers.scale import Scale
from dptrain.nn.tensor import uniform_fan_in
from dptrain.nn.zoo.blocks import conv_norm, needs_pixels


def resnet9(input_shape: Shape, classes: int, *, width: int = 64, logit_scale: float = 0.125) -> list[Part]:
    """ResNet9 (Page 2019, "How to train your ResNet"): widths `width`, 2, 4 and 8 * `width`.

    Three stages halve the maps, and the first and the last of them have a residual branch. The maximum over each map
    goes to a linear layer without bias; the logits are multiplied by `logit_scale`.
    Weights begin as in PyTorch.
    """
    needs_pixels("resnet9", input_shape, 8)

    def conv(multiple: int) -> list[Layer]:
        return [*conv_norm(multiple * whole_number(width, "width")), ReLU()]

    def residual(multiple: int) -> Residual:
        return Residual([*conv(multiple), *conv(multiple)])

    layers: list[Part] = [*conv(1)]
    layers += [*conv(2), MaxPool2d(2), residual(2)]
    layers += [*conv(4), MaxPool2d(2)]
    layers += [*conv(8), MaxPool2d(2), residual(8)]
    whole_map = input_shape[1] // 8, input_shape[2] // 8
    return [
        *layers,
        MaxPool2d(whole_map),
        Flatten(),
        Linear(classes, bias=False, init=uniform_fan_in),
        Scale(logit_scale),
    ]
