"""Batch normalisation and an activation, computed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain.arrays.memory import Array
from dptrain.nn.layer import CoupledLayer, Pass
from dptrain.nn.layers.activation import Activation
from dptrain.nn.layers.norm import BatchNorm2d, Moments


class NormActivation(CoupledLayer):
    """BatchNorm2d and an activation in one pass through the values, in pieces that stay in the second-level cache.

    The values between the two are not stored. The derivative of the activation is kept for the backward pass.
    """

    def __init__(self, norm: BatchNorm2d, activation: Activation) -> None:
        self.norm, self.activation = norm, activation
        self.name, self.synchronized = norm.name, norm.synchronized

    def __repr__(self) -> str:
        return f"NormActivation({self.norm!r}, {self.activation!r})"

    def collect(self, x: Array, call: Pass) -> Any:
        return self.norm.collect(x, call)

    def merge(self, parts: Sequence[Moments]) -> Moments:
        return self.norm.merge(parts)

    def merge_backward(self, parts: Sequence[Any]) -> Any:
        return self.norm.merge_backward(parts)

    def join(self, parts: Sequence[Moments], call: Pass) -> Any:
        return self.norm.join(parts, call)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        return self.norm.forward_activated(x, call, self.activation)

    def collect_backward(self, dy: Array, x: Array, saved: Any, out: Array, call: Pass) -> Any:
        return self.norm.collect_backward(dy, x, saved, out, call)

    def join_backward(self, parts: Sequence[Any], coupling: Any, call: Pass, total: Any = None) -> Any:
        return self.norm.join_backward(parts, coupling, call, total)

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        return self.norm.backward(dy, saved, call)
