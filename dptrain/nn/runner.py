"""How a network calls its layers, one method for each call: subclass it to observe or check them."""

from __future__ import annotations

from typing import Any

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer
from dptrain.nn.passes import Parameters, Pass


class Runner:
    """Calls the layers. A subclass can look at everything that goes in and comes out."""

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        return layer.prepare(parameters, workspace)

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        return layer.forward(x, call)

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        return layer.backward(dy, saved, call)


PLAIN = Runner()
