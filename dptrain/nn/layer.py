"""What every layer offers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace

Parameters = Mapping[str, Any]  # arrays, and among prepared ones whatever a layer has made of them


class Layer:
    """One step of a network. Layers hold no activations: those live in the caller's workspace.

    So several threads can run one layer at the same time, each with a workspace of its own.

    Rules, which `dptrain.nn.hidden_state` tries on a user's layers before they train:
    - Equal inputs and parameters give equal bits, whatever was computed before. No pass draws random numbers.
    - Nothing that a pass can reach changes while it computes: no attribute, also not within a list, dict or array, no
      variable of a module. What is kept lies in the workspace, or goes from forward to backward as `saved`. Constants
      are made in __init__ or bind, or by a function with functools.lru_cache.
    - x and the parameters are only read.
    """

    kind = "layer"  # layers are named by kind and number: conv1, relu1, pool1, conv2, ...
    name = ""  # set by the network

    _frozen = False  # set by the network, once the layer is bound

    def __setattr__(self, attribute: str, value: object) -> None:
        if self._frozen and attribute != "_frozen":
            raise AttributeError(
                f"{self.name} keeps {attribute!r} on itself while computing, but shards share the layer: return it "
                "from forward, as what backward needs, or keep it in the workspace"
            )
        super().__setattr__(attribute, value)

    def __repr__(self) -> str:
        """How the layer was made: the values of its attributes.

        It tells networks apart, so that a checkpoint is not resumed by another one. Define it for a layer
        whose attributes do not say what it computes.
        """
        told = {key: value for key, value in vars(self).items() if key != "name" and not key.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{key}={_told(value)}' for key, value in told.items())})"

    def bind(self, input_shape: Shape) -> Shape:
        """Learn the shape of one sample, (C, H, W) or (F,), return that of the output; ValueError if it cannot be."""
        return input_shape

    def parameter_shapes(self) -> dict[str, Shape]:
        """Own name ("weight", "bias") to shape, after bind."""
        return {}

    def fan_in(self) -> int:
        """Inputs that one output is summed from, for He initialisation; only layers with weights have it."""
        raise TypeError(f"{self!r} has no weights")

    def forward_flops(self) -> int:
        """Floating-point operations of one sample's forward pass by definition, after bind; 0 without a product."""
        return 0

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        """The parameters, and with them whatever can be computed from them alone, once for all shards of a step.

        The passes get what this returns; called on its own, a pass takes the mere parameters too.
        """
        return parameters

    def forward(self, x: Array, parameters: Parameters, workspace: Workspace) -> tuple[Array, Any]:
        """Output (..., N, O) for x (..., N, C), and what the backward pass needs. x may not be overwritten."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def backward(
        self,
        dy: Array,
        saved: Any,
        parameters: Parameters,
        gradients: Parameters,
        workspace: Workspace,
        need_dx: bool = True,
    ) -> Array | None:
        """Fill `gradients`, which are zero before, and return dx, the gradient of x; None when it is not needed.

        dy is the gradient of the output. It may be overwritten, and of `saved` what is the layer's own memory: one
        forward pass, one backward pass. x may not: the layer before may still need it.
        """
        raise TypeError(f"{type(self).__name__} does not define backward")


def _told(value: object) -> str:
    """A value in words that are the same in every process: arrays by their content, objects by their type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return repr(value) if type(value).__repr__ is not object.__repr__ and not callable(value) else type(value).__name__


def pair(value: int | tuple[int, int], what: str, least: int) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two; ValueError below `least`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(isinstance(part, int) and part >= least for part in both):
        raise ValueError(f"{what} is {value!r}, expected a whole number of at least {least}, or two of them")
    return both[0], both[1]


def windows(extent: int, kernel: int, stride: int, what: str) -> int:
    """How many windows of `kernel`, each `stride` further, fit into `extent`; ValueError when none does."""
    if extent < kernel:
        raise ValueError(f"{what}: an input of {extent} is smaller than the kernel of {kernel}")
    return (extent - kernel) // stride + 1
