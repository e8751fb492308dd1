"""Neighbouring layers fused for speed; `fuse` is the only place that decides which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

from dptrain.nn.fused_conv import ConvPoolReLU
from dptrain.nn.graph import Node
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.pool import MaxPool2d


def fuse(nodes: Sequence[Node]) -> list[Node]:
    """The nodes as they are computed: Conv2d, ReLU, MaxPool2d(2) in a row become one ConvPoolReLU."""
    uses = Counter(value for node in nodes for value in node.inputs)
    fused: list[Node] = []
    for node in nodes:
        fused.append(node)
        if can_be_fused(fused[-3:], uses):
            conv, _, pool = fused[-3:]
            layer = ConvPoolReLU(cast(Conv2d, conv.layer), cast(MaxPool2d, pool.layer))
            fused[-3:] = [Node(layer, conv.inputs, pool.output, pool.shape)]
    return fused


def can_be_fused(nodes: Sequence[Node], uses: Mapping[int, int]) -> bool:
    """Whether they are a convolution, ReLU and pooling of 2 x 2 windows in a row, and only each other's input."""
    # Exactly these types: a user's subclass computes something else.
    if [type(node.layer) for node in nodes] != [Conv2d, ReLU, MaxPool2d]:
        return False
    pool = cast(MaxPool2d, nodes[2].layer)
    in_a_row = all(one.output in other.inputs and uses[one.output] == 1 for one, other in pairwise(nodes))
    return in_a_row and pool.kernel_size == pool.stride == (2, 2)
