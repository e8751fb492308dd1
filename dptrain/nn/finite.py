"""Where numbers stop being finite: computes a microbatch once more and looks at everything on the way."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import ParamLayout
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, Parameters
from dptrain.nn.network import Network, quiet


def not_finite(values: Array) -> str:
    """What is among the values that is not finite, "nan", "-inf" or "inf"; "" when all are finite.

    In one minimum and one maximum, without a mask as large as the values, of which there is at least one.
    """
    for extreme in (values.min(), values.max()):  # a NaN is both
        if not np.isfinite(extreme):
            return str(extreme)
    return ""


def not_finite_parts(layout: ParamLayout, flat: Array) -> list[str]:
    """The parts of a vector (P,) that are not finite, by name, with what they hold: "conv1.weight holds nan"."""
    held = {name: not_finite(flat[part]) for name, part in layout.slices.items()}
    return [f"{name} holds {what}" for name, what in held.items() if what]


class Examined(Layer):
    """A layer as it is, which notes what is not finite of all that it puts out and hands back."""

    def __init__(self, layer: Layer, outputs: list[str], gradients: list[str]) -> None:
        self.layer, self.name = layer, layer.name
        self.outputs, self.gradients = outputs, gradients

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        return self.layer.prepare(parameters, workspace)

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Any]:
        y, saved = self.layer.forward(x, parameters, workspace)
        if what := not_finite(y):
            self.outputs.append(f"the output of {self.name} holds {what}")
        return y, saved

    def backward(
        self,
        dy: Array,
        saved: Any,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array | None:
        dx = self.layer.backward(dy, saved, parameters, gradients, workspace, need_dx=need_dx)
        for own, gradient in gradients.items():
            if what := not_finite(gradient):
                self.gradients.append(f"the gradient of {self.name}.{own} holds {what}")
        if dx is not None and (what := not_finite(dx)):
            self.gradients.append(f"the gradient of the input of {self.name} holds {what}")
        return dx


@quiet
def first_not_finite(
    network: Network, parameters: Array, images: Array, labels: NDArray[np.int64], workspace: Workspace
) -> str:
    """In words the first thing that is not finite in `loss_and_grad` of a microbatch; "" when all is finite.

    First is, in this order: a parameter, an output of a layer going forward, the loss, a gradient going backward;
    of a layer's gradients those of its parameters before that of its input. Joined layers go by the first one's name.
    """
    outputs: list[str] = []
    gradients: list[str] = []
    examined = copy.copy(network)
    examined.stages = [Examined(stage, outputs, gradients) for stage in network.stages]
    gradient = np.empty(network.layout.size, workspace.dtype)
    outcome = examined.loss_and_grad(parameters, images, labels, gradient, workspace)
    loss = not_finite(np.array(outcome.loss_sum, workspace.dtype))
    found = [
        *(f"the parameter {part}" for part in not_finite_parts(network.layout, parameters)),
        *outputs,
        *([f"the loss is {loss}"] if loss else []),
        *gradients,
        # What only the sum over blocks is not.
        *(f"the gradient of {part}" for part in not_finite_parts(network.layout, gradient)),
    ]
    return found[0] if found else ""
