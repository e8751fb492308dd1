"""Neighbouring layers fused for speed; `fuse` is the only place that decides which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from dptrain.nn.fused_conv import ConvPoolReLU
from dptrain.nn.fused_norm import NormActivation
from dptrain.nn.graph import Node
from dptrain.nn.layer import Layer, is_users
from dptrain.nn.layers.activation import Activation, ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.norm import BatchNorm2d
from dptrain.nn.layers.pool import MaxPool2d


def fuse(nodes: Sequence[Node]) -> list[Node]:
    """The nodes as they are computed. Layers in a row become one, if each is the only one that reads the one before:

    Conv2d, ReLU, MaxPool2d(2); Conv2d, MaxPool2d(2); BatchNorm2d, an activation.
    """
    uses = Counter(value for node in nodes for value in node.inputs)
    fused: list[Node] = []
    for node in nodes:
        fused.append(node)
        for count in (3, 2):
            last = fused[-count:]
            in_a_row = all(one.output in other.inputs and uses[one.output] == 1 for one, other in pairwise(last))
            if in_a_row and (layer := _as_one([one.layer for one in last])):
                fused[-count:] = [Node(layer, last[0].inputs, node.output, node.shape)]
    return fused


def _as_one(layers: Sequence[Layer]) -> Layer | None:
    """A layer that computes all of them; None if there is none."""
    # Exactly these types: a user's subclass computes something else.
    types = [type(layer) for layer in layers]
    if types in ([Conv2d, ReLU, MaxPool2d], [Conv2d, MaxPool2d]):
        pool = cast(MaxPool2d, layers[-1])
        if pool.kernel_size == pool.stride == (2, 2):
            return ConvPoolReLU(cast(Conv2d, layers[0]), pool, relu=len(layers) == 3)
    if len(layers) == 2 and types[0] is BatchNorm2d and issubclass(types[1], Activation) and not is_users(layers[1]):
        return NormActivation(cast(BatchNorm2d, layers[0]), cast(Activation, layers[1]))
    return None
