"""The interface of all layers, and how a network calls them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.passes import Parameters, Pass
from dptrain.nn.tensor import Tensor


class Layer:
    """One step of a network. Threads share the layer; each thread has its own workspace for arrays.

    Rules, which `dptrain.nn.hidden_state` checks for a user's layers before they train:
    - Equal inputs, parameters and draws give equal bits. Random numbers come from `call.uniform`.
    - A pass changes no attribute of the layer and no variable of a module. Keep arrays in the workspace, or return
      them from forward as `saved`.
    - A pass only reads x, the parameters and the buffers.
    """

    kind = "layer"  # layers are named by kind and number: conv1, relu1, pool1, conv2, ...
    couples_samples = False  # True if a sample's output depends on other samples of the microbatch while training
    name = ""  # set by the network

    _arguments: dict[str, Any]  # of the constructor

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        layer = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(layer, *arguments, **options)
        except (TypeError, ValueError):  # __init__ reports it; copy.copy passes no arguments
            return layer
        bound.apply_defaults()
        layer._arguments = dict(list(bound.arguments.items())[1:])
        return layer

    def __init__(self) -> None:
        """A layer without arguments."""

    def __repr__(self) -> str:
        """The call that constructs the layer."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        positional = {one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in self.spec().items()}
        name = values.pop("type")
        words = [("" if key in positional else f"{key}=") + repr(value) for key, value in values.items()]
        return f"{name}({', '.join(words)})"

    def spec(self) -> dict[str, Any]:
        """The layer's identity in JSON values, which checkpoints hold: its type and the arguments of its constructor.

        An argument is read from the attribute of the same name, if there is one.
        """
        arguments = {name: plain(getattr(self, name, value)) for name, value in self._arguments.items()}
        return {"type": type(self).__name__, **arguments}

    def tuning(self) -> dict[str, Any]:
        """Choices that change speed and last bits, but not what is computed."""
        return {}

    def bind(self, input_shape: Shape) -> Shape:
        """The shape of an output sample for that of an input sample, (C, H, W) or (F,); ValueError if it does not fit.

        Called once, before the methods below.
        """
        return input_shape

    def tensors(self) -> Sequence[Tensor]:
        """The layer's parameters and buffers."""
        return ()

    def forward_flops(self) -> int:
        """Floating-point operations of one sample's forward pass by definition; only products count."""
        return 0

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        """The parameters as the passes get them, with anything that all shards of a step can share."""
        return parameters

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        """The output (..., N, O) for x (..., N, C), and whatever the backward pass needs."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        """Write `call.gradients` and return dx, the gradient of x; None if `call.need_dx` is False.

        dy, the gradient of the output, may be overwritten, and so may the layer's arrays in `saved`, but not x.
        """
        raise TypeError(f"{type(self).__name__} does not define backward")


class Runner:
    """How a network calls its layers. A subclass can observe or check every call."""

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        return layer.prepare(parameters, workspace)

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        return layer.forward(x, call)

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        return layer.backward(dy, saved, call)


PLAIN = Runner()


def where(layer: Layer) -> str:
    """A layer's name and type, for error messages."""
    return f"layer {layer.name} ({type(layer).__name__})"


def plain(value: Any) -> Any:
    """A value as JSON can hold it, the same in every process: arrays by a hash, other objects by their type."""
    return json.loads(json.dumps(value, default=_plain, skipkeys=True), parse_constant=str)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Layer):
        return value.spec()
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def pair(value: int | tuple[int, int], what: str, least: int) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two; ValueError below `least`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(isinstance(part, int) and part >= least for part in both):
        raise ValueError(f"{what} is {value!r}, expected a whole number of at least {least}, or two of them")
    return both[0], both[1]


def windows(extents: Sequence[int], kernel: Sequence[int], stride: Sequence[int], what: str) -> tuple[int, ...]:
    """How many windows of `kernel`, each `stride` further, fit along each axis; ValueError when none does."""
    if any(extent < size for extent, size in zip(extents, kernel, strict=True)):
        raise ValueError(f"{what}: an input of {tuple(extents)} is smaller than the kernel of {tuple(kernel)}")
    return tuple((extent - size) // step + 1 for extent, size, step in zip(extents, kernel, stride, strict=True))


def feature_maps(layer: Layer, input_shape: Shape) -> tuple[int, int, int]:
    """input_shape, if it is (C, H, W); ValueError otherwise."""
    if len(input_shape) != 3:
        raise ValueError(f"{layer!r} needs feature maps (C, H, W), it gets {input_shape}")
    return input_shape[0], input_shape[1], input_shape[2]
