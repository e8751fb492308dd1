"""The interface of a layer, what it gets for a pass (`Pass`), and how a network calls it (`Runner`)."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Self

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.arrays.random import NO_KEY, WORDS_PER_COUNT, Draws, Purpose, random_words
from dptrain.nn.tensor import Tensor

Parameters = Mapping[str, Any]  # arrays by the tensors' names, and whatever `prepare` has made of them
Arrays = Mapping[str, Array]
TAKE_INPUTS = ("Linear", "Conv2d", "BatchNorm2d")  # PyTorch's layers of these names take the number of inputs first


class Views(dict[str, Array]):
    """Arrays by name, to be filled in place."""

    def __setitem__(self, name: str, value: Array) -> None:
        if value is not self.get(name):  # views[name] += value assigns the same array
            raise TypeError(f"assigning to {name!r} has no effect: write into the array, by [{name!r}][...] = value")


def read_only(array: Array) -> Array:
    """A view that cannot be written to."""
    view = array.view()
    view.setflags(write=False)
    return view


@dataclass(slots=True)
class Pass:
    """The context of one forward pass of a layer and its backward pass.

    parameters    by name, as `prepare` returned them; read only
    buffers       by name; read only
    gradients     of the parameters, zero before the backward pass, which writes them: gradients["weight"][...] = value
    statistics    of this microbatch, for the buffers; a forward pass in training writes them
    training      False for an evaluation: then nothing is drawn, and no statistics are written
    need_dx       whether the backward pass must return the gradient of the layer's input
    workspace     memory for arrays, for this thread alone
    """

    parameters: Parameters
    buffers: Arrays
    workspace: Workspace
    training: bool = False
    gradients: Arrays = field(default_factory=dict)
    statistics: Arrays = field(default_factory=dict)
    need_dx: bool = True
    draws: Draws = NO_KEY
    layer_number: int = 0
    drawn: int = 0  # how often the layer has drawn
    coupling: Any = None  # of a `CoupledLayer` that is computed in blocks: what `join` or `join_backward` returned

    def uniform(self, shape: Shape) -> Array:
        """New random numbers in [0, 1) for an array (..., N, C): 24 bits each, in the workspace's dtype.

        A sample's numbers depend on seed, epoch, shard, its position, the layer, and the layer's earlier draws in this
        pass.
        """
        *extents, samples, channels = shape
        per_sample = math.prod(extents) * channels
        counts = -(-per_sample // (2 * WORDS_PER_COUNT))  # a word gives two numbers
        words = random_words(
            self.draws.seed,
            Purpose.LAYER,
            self.draws.shard,
            samples * counts * WORDS_PER_COUNT,
            epoch=self.draws.epoch,
            stream=self.layer_number << 32 | self.drawn,
            start=self.draws.position * counts,
        )
        self.drawn += 1
        halves = words.astype("<u8", copy=False).view("<u4").reshape(samples, -1)[:, :per_sample]
        numbers = (halves >> np.uint32(8)).astype(self.workspace.dtype)
        numbers *= 2.0**-24
        return np.ascontiguousarray(np.moveaxis(numbers.reshape(samples, *extents, channels), 0, -2))


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
    unspecified: tuple[str, ...] = ()  # arguments of the constructor that set initial values or speed alone

    _arguments: dict[str, Any]  # of the constructor

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        layer = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(layer, *arguments, **options)
        except TypeError as error:
            if arguments or options:
                raise TypeError(_wrong_arguments(cls, error)) from None
            return layer  # copy.copy passes no arguments; otherwise __init__ reports it
        except ValueError:
            return layer
        bound.apply_defaults()
        layer._arguments = dict(list(bound.arguments.items())[1:])
        return layer

    def __init__(self) -> None:
        """A layer without arguments."""

    def __repr__(self) -> str:
        """The call that constructs the layer. A keyword argument that has its default value is left out."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        positional = {one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in self.spec().items()}
        name, defaults = values.pop("type"), self._defaults()
        words = []
        for key, value in values.items():
            if key in positional:
                words.append(repr(value))
            elif key not in defaults or plain(value) != plain(defaults[key]):
                words.append(f"{key}={value!r}")
        return f"{name}({', '.join(words)})"

    def spec(self) -> dict[str, Any]:
        """The layer's identity in JSON values, which checkpoints hold: its type and the arguments of its constructor.

        An argument is read from the attribute of the same name, if there is one. Those in `unspecified` are left out.
        """
        arguments = {name: plain(getattr(self, name, value)) for name, value in self._arguments.items()}
        for name in self.unspecified:
            arguments.pop(name, None)
        return {"type": type(self).__name__, **arguments}

    def complete(self, older: Mapping[str, Any]) -> dict[str, Any]:
        """The `spec` that an older version of the class wrote, with the arguments that were added since.

        Each is added if it has its default value here: with it, the layer must compute what the older version computed.
        """
        spec = self.spec()
        added = {
            name: spec[name]
            for name, default in self._defaults().items()
            if name in spec and plain(default) in (spec[name], plain(self._arguments[name]))
        }
        return {**added, **older}

    def _defaults(self) -> dict[str, Any]:
        """The arguments of the constructor that have a default value, with this value."""
        bound = inspect.signature(type(self).__init__).bind_partial(self)
        bound.apply_defaults()
        return dict(list(bound.arguments.items())[1:])

    def tuning(self) -> dict[str, Any]:
        """Choices that change speed and last bits, but not what is computed."""
        return {}

    def bind(self, input_shape: Shape) -> Shape:
        """The shape of an output sample for that of an input sample, (C, H, W) or (F,); ValueError if it does not fit.

        Called once, before the methods below.
        """
        return input_shape

    def set_cache(self, kib: int) -> None:
        """The size of a core's second-level cache, by which the layer may choose how much it computes at once."""

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


def _wrong_arguments(kind: type[Layer], error: TypeError) -> str:
    """What the constructor of a layer expects, for somebody who knows the layers of PyTorch."""
    names: list[str] = []
    for one in list(inspect.signature(kind.__init__).parameters.values())[1:]:
        if one.kind is one.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(one.name)
    text = f"{kind.__name__}: {error}; expected {kind.__name__}({', '.join(names)})"
    known = "; the number of inputs or channels is not given, it follows from the input"
    return text + known * (kind.__name__ in TAKE_INPUTS)


class CoupledLayer(Layer):
    """A layer that couples samples only by sums over the microbatch, so it can be computed in blocks of samples.

    Each pass has two phases. `collect` gets every block; `join` combines what it returned; then `forward` gets every
    block, with what `join` returned as `call.coupling`. The blocks of the two phases may have different sizes. The
    backward pass is alike: `collect_backward`, `join_backward`, and `backward`, which gets x as `saved`. Without a
    coupling, `forward` and `backward` get the whole microbatch and do all of it.

    A `synchronized` layer couples the samples of all shards. What `merge` and `merge_backward` return is added by `+`
    over the shards; `join` and `join_backward` get the total.
    """

    couples_samples = True
    synchronized = False

    def least_samples(self) -> int:
        """How many samples a microbatch must have in training; if synchronized, the global batch."""
        return 1

    def collect(self, x: Array, call: Pass) -> Any:
        """The sums of a block x (..., N, C)."""
        raise TypeError(f"{type(self).__name__} does not define collect")

    def join(self, parts: Sequence[Any], call: Pass) -> Any:
        """What `forward` needs, from the sums of all blocks; writes `call.statistics`."""
        raise TypeError(f"{type(self).__name__} does not define join")

    def merge(self, parts: Sequence[Any]) -> Any:
        """The sums of all blocks as one value, which can be pickled; `join` takes it, or a total, as the only part."""
        raise TypeError(f"{type(self).__name__} does not define merge")

    def collect_backward(self, dy: Array, x: Array, saved: Any, out: Array, call: Pass) -> Any:
        """The sums of a block; writes what `backward` gets as dy to `out`. `saved` is from `forward` of the block."""
        raise TypeError(f"{type(self).__name__} does not define collect_backward")

    def merge_backward(self, parts: Sequence[Any]) -> Any:
        """The sums of all blocks as one value, which can be pickled."""
        raise TypeError(f"{type(self).__name__} does not define merge_backward")

    def join_backward(self, parts: Sequence[Any], coupling: Any, call: Pass, total: Any = None) -> Any:
        """What `backward` needs, from the sums of all blocks and the coupling of `forward`; writes `call.gradients`.

        The gradients are those of the blocks alone, also if there is a `total` of all shards.
        """
        raise TypeError(f"{type(self).__name__} does not define join_backward")


class Runner:
    """How a network calls its layers. A subclass can observe or check every call."""

    def prepare(self, layer: Layer, parameters: Parameters, workspace: Workspace) -> Parameters:
        return layer.prepare(parameters, workspace)

    def forward(self, layer: Layer, x: Array, call: Pass) -> tuple[Array, Any]:
        return layer.forward(x, call)

    def backward(self, layer: Layer, dy: Array, saved: Any, call: Pass) -> Array | None:
        return layer.backward(dy, saved, call)

    def collect(self, layer: CoupledLayer, x: Array, call: Pass) -> Any:
        return layer.collect(x, call)

    def collect_backward(self, layer: CoupledLayer, dy: Array, x: Array, saved: Any, out: Array, call: Pass) -> Any:
        return layer.collect_backward(dy, x, saved, out, call)

    def complete(self, layer: Layer) -> None:
        """The gradients of the layer's parameters are complete: all samples have been computed."""


PLAIN = Runner()


def where(layer: Layer) -> str:
    """A layer's name and type, for error messages."""
    return f"layer {layer.name} ({type(layer).__name__})"


def is_users_class(kind: type) -> bool:
    """Whether it is neither dptrain's nor Python's."""
    return kind.__module__.partition(".")[0] not in ("dptrain", "builtins", "abc", "typing")


def is_users(layer: Layer) -> bool:
    """Whether its passes are a user's code."""
    return any(map(is_users_class, type(layer).__mro__)) or not vars(layer).keys().isdisjoint(("forward", "backward"))


def plain(value: Any) -> Any:
    """A value as JSON can hold it, the same in every process: arrays by a hash, other objects by their type."""
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


def whole_number(value: Any, what: str, least: int = 1) -> int:
    """The value, if it is a whole number of at least `least`; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{what} is {value!r}, expected a whole number of at least {least}")
    return int(value)


def whole_numbers(values: Any, what: str) -> list[int]:
    """The values, if they are a list of one or more whole numbers of at least 1; ValueError otherwise."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{what} is {values!r}, expected a list of whole numbers of at least 1")
    return [whole_number(value, f"one of the {what}") for value in values]


def pair(value: int | tuple[int, int], what: str, least: int) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two; ValueError below `least`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{what} is {value!r}, expected a whole number of at least {least}, or two of them")
    return whole_number(both[0], what, least), whole_number(both[1], what, least)


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
