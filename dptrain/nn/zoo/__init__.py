"""Named architectures. A new one is one file here, NAME.py with a function NAME, and its name in the list below.

An architecture is a function of the shape (C, H, W) of an image, the number of classes, and options of its own. It
returns layers, in which `Sequential` and `Residual` can stand for a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from dptrain.arrays.layout import Shape
from dptrain.nn.graph import Part
from dptrain.nn.zoo.convnet import convnet
from dptrain.nn.zoo.linear import linear

Architecture = Callable[..., Part]


def _imported_when_called(name: str) -> Architecture:
    def build(input_shape: Shape, classes: int, **options: Any) -> Part:
        found: Part = getattr(import_module(f"{__name__}.{name}"), name)(input_shape, classes, **options)
        return found

    return build


ARCHITECTURES: dict[str, Architecture] = {
    "convnet": convnet,
    "linear": linear,
    **{name: _imported_when_called(name) for name in ("resnet20", "vgg11", "resnet9", "airbench")},
}

__all__ = ["ARCHITECTURES", "Architecture", "convnet", "linear"]
