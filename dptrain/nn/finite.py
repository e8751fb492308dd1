"""Finds the first intermediate result of a microbatch that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import NO_KEY, Draws
from dptrain.nn.layer import Layer, Pass, Runner
from dptrain.nn.loss import CROSS_ENTROPY, CrossEntropy
from dptrain.nn.network import Network, computable_alone, quiet


def not_finite(values: Array) -> str:
    """A value that is not finite, "nan", "-inf" or "inf"; "" when all are finite. There must be at least one value."""
    for extreme in (values.min(), values.max()):  # a NaN is both
        if not np.isfinite(extreme):
            return str(extreme)
    return ""


def not_finite_parts(layout: Layout, flat: Array) -> list[str]:
    """The tensors of a flat vector that are not finite, such as "conv1.weight holds nan"."""
    return [text for name, part in layout.slices.items() for text in _held(name, flat[part])]


def _held(name: str, values: Array) -> list[str]:
    what = not_finite(values)
    return [f"{name} holds {what}"] if what else []


class Examiner(Runner):
    """Lists the outputs and gradients that are not finite."""

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self.gradients: list[str] = []

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        y, saved = super().forward(layer, x, call)
        self.outputs += _held(f"the output of {layer.name}", y)
        return y, saved

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        dx = super().backward(layer, dy, saved, call)
        for name, gradient in call.gradients.items():
            self.gradients += _held(f"the gradient of {layer.name}.{name}", gradient)
        inputs = dx if isinstance(dx, tuple) else (dx,)  # a layer of a graph may have several inputs
        for one in inputs:
            if one is not None:
                self.gradients += _held(f"the gradient of the input of {layer.name}", one)
        return dx


@quiet
def first_not_finite(
    network: Network,
    vectors: Mapping[str, Array],
    images: Array,
    labels: NDArray[np.int64],
    workspace: Workspace,
    draws: Draws = NO_KEY,
    loss: CrossEntropy = CROSS_ENTROPY,
    parts: int = 1,
) -> str:
    """The first thing that is not finite in `loss_and_grad` of a microbatch, in words; "" when all is finite.

    In this order: parameters, buffers, outputs of the forward pass, the loss, statistics for the buffers, gradients of
    the backward pass. `vectors` holds "parameters" (P,) and "buffers" (B,). Fused layers have the first one's name.
    """
    images, labels = computable_alone(network, images, labels)
    parts = 1 if network.rounds() else parts
    examiner = Examiner()
    prepared = network.prepare(vectors["parameters"], vectors["buffers"], workspace)
    gradient = np.empty(network.layout.size, workspace.dtype)
    options: dict[str, Any] = {"loss": loss, "draws": draws, "runner": examiner, "parts": parts}
    statistics = np.empty(network.buffer_layout.size, workspace.dtype)
    outcome = network.loss_and_grad(prepared, images, labels, gradient, workspace, statistics=statistics, **options)
    loss_value = not_finite(np.array(outcome.loss_sum, workspace.dtype))
    found = [
        *(f"the parameter {part}" for part in not_finite_parts(network.layout, vectors["parameters"])),
        *(f"the buffer {part}" for part in not_finite_parts(network.buffer_layout, vectors["buffers"])),
        *examiner.outputs,
        *([f"the loss is {loss_value}"] if loss_value else []),
        *(f"the statistic for {part}" for part in not_finite_parts(network.buffer_layout, statistics)),
        *examiner.gradients,
        # Not finite only in the sum over blocks.
        *(f"the gradient of {part}" for part in not_finite_parts(network.layout, gradient)),
    ]
    return found[0] if found else ""
