"""Batch normalisation folded into the convolution before it, for an evaluation.

With running averages the normalisation is y = a * x + b by channel, and x a convolution: so a is multiplied into the
weight, and b added to the bias. Of a convolution with pooling this is right only for a > 0: where the scale is fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, cast

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.fused_conv import ConvPoolReLU
from dptrain.nn.fused_norm import NormActivation
from dptrain.nn.graph import Node
from dptrain.nn.layer import Layer, Parameters, Pass
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.norm import BatchNorm2d

Tensors = Mapping[str, Mapping[str, Array]]  # parameters and buffers, by layer and name


class FoldedNorm(Layer):
    """A convolution, perhaps with pooling, that also computes the batch normalisation behind it."""

    def __init__(self, stage: Conv2d | ConvPoolReLU, norm: BatchNorm2d) -> None:
        conv = copy(stage if isinstance(stage, Conv2d) else stage.conv)
        conv.bias = True
        self.stage = conv if isinstance(stage, Conv2d) else ConvPoolReLU(conv, stage.pool, relu=False)
        self.norm, self.name = norm, conv.name

    def __repr__(self) -> str:
        return f"FoldedNorm({self.stage!r}, {self.norm!r})"

    def folded(self, tensors: Tensors) -> dict[str, Array]:
        """Weight (O, C, KH, KW) and bias (O,) of the convolution."""
        conv, norm = tensors[self.name], tensors[self.norm.name]
        factor, offset = self.norm.slope_and_offset(norm, norm)
        bias = offset + conv["bias"] * factor if "bias" in conv else offset
        return {"weight": conv["weight"] * factor[:, None, None, None], "bias": bias}

    def set_cache(self, kib: int) -> None:
        self.stage.set_cache(kib)

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        return self.stage.prepare(parameters, workspace)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return self.stage.forward(x, call)


def fold(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, of which a convolution and the batch normalisation that alone reads its output become one."""
    uses = Counter(value for node in nodes for value in node.inputs)
    folded: list[Node] = []
    for node in nodes:
        norm = node.layer.norm if isinstance(node.layer, NormActivation) else node.layer
        before = folded[-1] if folded else None
        in_a_row = before is not None and node.inputs == (before.output,) and uses[before.output] == 1
        if before is None or not in_a_row or type(norm) is not BatchNorm2d or not (stage := _foldable(before, norm)):
            folded.append(node)
            continue
        layer = FoldedNorm(stage, norm)
        if isinstance(node.layer, NormActivation):
            folded[-1] = Node(layer, before.inputs, before.output, before.shape)
            folded.append(Node(node.layer.activation, node.inputs, node.output, node.shape))
        else:
            folded[-1] = Node(layer, before.inputs, node.output, node.shape)
    return folded


def _foldable(node: Node, norm: BatchNorm2d) -> Conv2d | ConvPoolReLU | None:
    """The node's layer, if the normalisation can be folded into it."""
    if type(node.layer) is Conv2d:
        return node.layer
    pooled = isinstance(node.layer, ConvPoolReLU) and not node.layer.relu and not norm.scale
    return cast(ConvPoolReLU, node.layer) if pooled else None
