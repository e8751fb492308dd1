"""What every layer offers."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.passes import Parameters, Pass
from dptrain.nn.tensor import Tensor


class Layer:
    """One step of a network. Layers hold no activations: those live in the caller's workspace.

    So several threads can run one layer at the same time, each with its own workspace.

    Rules, which `dptrain.nn.hidden_state` checks for a user's layers before they train:
    - Equal inputs, parameters and draws give equal bits, whatever was computed before. Random numbers come from
      `call.uniform`.
    - A pass changes nothing that another pass can read: no attribute, also not within a list, dict or array, and no
      variable of a module. Keep arrays in the workspace, or return them from forward as `saved`. Make constants in
      __init__ or bind, or by a function with functools.lru_cache.
    - A pass only reads x, the parameters and the buffers.
    """

    kind = "layer"  # layers are named by kind and number: conv1, relu1, pool1, conv2, ...
    couples_samples = False  # True if a sample's output depends on other samples of the microbatch while training
    name = ""  # set by the network

    _arguments: dict[str, Any]  # of the constructor
    _frozen = False  # set by the network, once the layer is bound

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        layer = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(layer, *arguments, **options)
        except (TypeError, ValueError):  # __init__ will report it; a copy is made without arguments
            return layer
        bound.apply_defaults()
        object.__setattr__(layer, "_arguments", dict(list(bound.arguments.items())[1:]))
        return layer

    def __init__(self) -> None:
        """A layer without arguments."""

    def __setattr__(self, attribute: str, value: object) -> None:
        if self._frozen and attribute != "_frozen":
            raise AttributeError(
                f"{self.name} sets its attribute {attribute!r} while computing, but shards share the layer: return the "
                "value from forward as `saved`, or keep it in the workspace"
            )
        super().__setattr__(attribute, value)

    def __repr__(self) -> str:
        """How to construct the layer: the values of `spec`."""
        kinds = inspect.signature(type(self).__init__).parameters
        values = {name: value for name, value in self.spec().items() if name != "type"}
        words = [
            f"{'' if name in kinds and kinds[name].kind is kinds[name].POSITIONAL_OR_KEYWORD else f'{name}='}"
            f"{tuple(value) if isinstance(value, list) else value!r}"
            for name, value in values.items()
        ]
        return f"{type(self).__name__}({', '.join(words)})"

    def spec(self) -> dict[str, Any]:
        """The layer's identity in plain JSON values: its type and the arguments it was constructed with.

        A checkpoint holds it, and is not resumed by a layer with another one. An argument is read from the attribute
        of the same name, if there is one. Extend it for a layer whose arguments do not say what it computes.
        """
        arguments = {name: getattr(self, name, value) for name, value in self._arguments.items()}
        return {"type": type(self).__name__, **{name: plain(value) for name, value in arguments.items()}}

    def tuning(self) -> dict[str, Any]:
        """Choices that change speed and last bits, but not what is computed: no part of the identity."""
        return {}

    def bind(self, input_shape: Shape) -> Shape:
        """Take the shape of one sample, (C, H, W) or (F,), and return that of the output; ValueError if it cannot be.

        Called once, before everything below.
        """
        return input_shape

    def tensors(self) -> Sequence[Tensor]:
        """The layer's parameters and buffers."""
        return ()

    def forward_flops(self) -> int:
        """Floating-point operations of one sample's forward pass by definition; 0 without a product."""
        return 0

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        """The parameters, and what can be computed from them alone, once for all shards of a step.

        The passes get what this returns. A pass that is called without it takes the plain parameters too.
        """
        return parameters

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        """Output (..., N, O) for x (..., N, C), and whatever the backward pass needs. x must not be overwritten."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        """Write `call.gradients` and return dx, the gradient of x; None if `call.need_dx` is False.

        dy is the gradient of the output. It may be overwritten, and so may the layer's own arrays in `saved`, as each
        forward pass has one backward pass. x must not be overwritten: the layer before may still need it.
        """
        raise TypeError(f"{type(self).__name__} does not define backward")


def plain(value: Any) -> Any:
    """A value as JSON can hold it, the same in every process: arrays by a hash, objects by their type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Layer):
        return value.spec()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", None) or type(value).__qualname__


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
