"""Where numbers stop being finite: computes a microbatch again and looks at every intermediate result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import NO_KEY, Draws
from dptrain.nn.layer import Layer, Runner
from dptrain.nn.network import Network, quiet
from dptrain.nn.passes import Pass


def not_finite(values: Array) -> str:
    """The first kind of value that is not finite, "nan", "-inf" or "inf"; "" when all are finite.

    By one minimum and one maximum, without a mask as large as the values. There must be at least one value.
    """
    for extreme in (values.min(), values.max()):  # a NaN is both
        if not np.isfinite(extreme):
            return str(extreme)
    return ""


def not_finite_parts(layout: Layout, flat: Array) -> list[str]:
    """The tensors of a flat vector that are not finite, with what they hold: "conv1.weight holds nan"."""
    held = {name: not_finite(flat[part]) for name, part in layout.slices.items()}
    return [f"{name} holds {what}" for name, what in held.items() if what]


class Examiner(Runner):
    """Notes everything that is not finite among what the layers return."""

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self.gradients: list[str] = []

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        y, saved = super().forward(layer, x, call)
        if what := not_finite(y):
            self.outputs.append(f"the output of {layer.name} holds {what}")
        return y, saved

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        dx = super().backward(layer, dy, saved, call)
        for name, gradient in call.gradients.items():
            if what := not_finite(gradient):
                self.gradients.append(f"the gradient of {layer.name}.{name} holds {what}")
        if dx is not None and (what := not_finite(dx)):
            self.gradients.append(f"the gradient of the input of {layer.name} holds {what}")
        return dx


@quiet
def first_not_finite(
    network: Network,
    vectors: Mapping[str, Array],
    images: Array,
    labels: NDArray[np.int64],
    workspace: Workspace,
    draws: Draws = NO_KEY,
) -> str:
    """In words the first thing that is not finite in `loss_and_grad` of a microbatch; "" when all is finite.

    `vectors` holds "parameters" (P,) and "buffers" (B,). First is, in this order: a parameter, a buffer, an output of a
    layer in the forward pass, the loss, a gradient in the backward pass; of a layer's gradients those of its parameters
    before that of its input. Fused layers have the first one's name.
    """
    examiner = Examiner()
    prepared = network.prepare(vectors["parameters"], vectors["buffers"], workspace)
    gradient = np.empty(network.layout.size, workspace.dtype)
    outcome = network.loss_and_grad(prepared, images, labels, gradient, workspace, draws=draws, runner=examiner)
    loss = not_finite(np.array(outcome.loss_sum, workspace.dtype))
    found = [
        *(f"the parameter {part}" for part in not_finite_parts(network.layout, vectors["parameters"])),
        *(f"the buffer {part}" for part in not_finite_parts(network.buffer_layout, vectors["buffers"])),
        *examiner.outputs,
        *([f"the loss is {loss}"] if loss else []),
        *examiner.gradients,
        # Not finite only in the sum over blocks.
        *(f"the gradient of {part}" for part in not_finite_parts(network.layout, gradient)),
    ]
    return found[0] if found else ""
