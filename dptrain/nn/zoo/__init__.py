"""Named architectures. A new one is one file here and one line in ARCHITECTURES.

An architecture is a function of the shape (C, H, W) of an image, the number of classes, and options of its own. It
returns layers, in which `Sequential` and `Residual` can stand for a layer.
"""

from __future__ import annotations

from collections.abc import Callable

from dptrain.nn.graph import Part
from dptrain.nn.zoo.convnet import convnet
from dptrain.nn.zoo.linear import linear
from dptrain.nn.zoo.resnet9 import resnet9
from dptrain.nn.zoo.resnet20 import resnet20
from dptrain.nn.zoo.vgg11 import vgg11

Architecture = Callable[..., Part]

ARCHITECTURES: dict[str, Architecture] = {
    "convnet": convnet,
    "linear": linear,
    "resnet20": resnet20,
    "vgg11": vgg11,
    "resnet9": resnet9,
}

__all__ = ["ARCHITECTURES", "Architecture", "convnet", "linear", "resnet9", "resnet20", "vgg11"]
