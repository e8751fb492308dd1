"""The residual network for CIFAR of He et al. 2015."""

from __future__ import annotations

from dptrain.arrays.layout import Shape
from dptrain.nn.graph import Part, Residual
from dptrain.nn.layer import whole_number
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.global_pool import GlobalAvgPool2d
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.shortcut import ZeroPadShortcut
from dptrain.nn.tensor import he_uniform, small_uniform
from dptrain.nn.zoo.blocks import conv_norm


def resnet20(input_shape: Shape, classes: int, *, width: int = 16, blocks: int = 3) -> list[Part]:
    """ResNet of 6 * blocks + 2 layers (He et al. 2015, section 4.2): 3 blocks are ResNet-20, 9 are ResNet-56.

    Three stages of `width`, 2 * `width` and 4 * `width` channels; the second and third begin with stride 2. Shortcuts
    have no parameters (option A of the paper): see `ZeroPadShortcut`.
    """
    layers: list[Part] = [*conv_norm(whole_number(width, "width"), init=he_uniform), ReLU()]
    for stage in range(3):
        channels = width * 2**stage
        for block in range(whole_number(blocks, "blocks")):
            halves = stage > 0 and block == 0
            first = conv_norm(channels, stride=2 if halves else 1, init=he_uniform)
            body = [*first, ReLU(), *conv_norm(channels, init=he_uniform)]
            layers += [Residual(body, ZeroPadShortcut(channels) if halves else ()), ReLU()]
    return [*layers, GlobalAvgPool2d(), Linear(classes, init=small_uniform)]
