"""Helpers to compute with a network or a single layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Layer, Pass
from dptrain.nn.network import Network, Prepared
from dptrain.nn.zoo import ARCHITECTURES

# Options of narrow versions; an architecture gets the first that it takes.
NARROW: tuple[dict[str, Any], ...] = ({"width": 8, "blocks": 1}, {"width": 8}, {"widths": [8, 16]}, {})


def narrow(name: str, classes: int) -> Network:
    """A narrow version of an architecture, for the smallest images that it takes."""
    for size in (8, 16, 32):
        for options in NARROW:
            try:
                return Network(ARCHITECTURES[name]((3, size, size), classes, **options), (3, size, size))
            except (TypeError, ValueError):
                continue
    raise ValueError(f"{name} does not take 32 x 32 images")


def ready(network: Network, parameters: Array, buffers: Array | None = None) -> Prepared:
    """`parameters` (P,) prepared, in their own dtype; buffers are the initial ones unless given."""
    workspace = Workspace(parameters.dtype)
    return network.prepare(parameters, network.initial(0)["buffers"] if buffers is None else buffers, workspace)


def training_pass(parameters: dict[str, Array], workspace: Workspace | None = None, **options: Any) -> Pass:
    """The context of a layer's passes, with gradients that are full of NaN."""
    gradients = {name: np.full_like(values, np.nan) for name, values in parameters.items()}
    return Pass(parameters, {}, workspace or Workspace(), training=True, gradients=gradients, **options)


def random_parameters(layer: Layer, generator: np.random.Generator, dtype: Any = np.float32) -> dict[str, Array]:
    """Normal values for every parameter of a bound layer."""
    shapes = {tensor.name: tensor.shape for tensor in layer.tensors() if tensor.kind == "parameter"}
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
