"""What a layer declares about each of its tensors, and how tensors are initialised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array

Words = Callable[[int], NDArray[np.uint64]]  # the first words of the tensor's own random sequence
Init = Callable[[Shape, Words], "Array | float"]  # initial values of a tensor
FromImages = Callable[[Iterable[Array]], Array]  # the same from images; the iterable can be iterated several times


@dataclass(frozen=True)
class Tensor:
    """A parameter, which the optimizer trains, or a buffer, such as the running mean of a batch normalisation.

    name         unique within the layer; the full name is "conv1.weight"
    init         initial values, such as `he_uniform(fan_in)` or `zeros`
    decay        whether weight decay applies; unless given, to parameters of two or more axes
    group        parameters of a group can have another learning rate
    trainable    False keeps a parameter as it is
    from_images  initial values from normalised sample images of the training set, blocks (H, W, N, C); only for a layer
                 that reads the network's input. Without images, as in tests, `init` is used.
    momentum     of a buffer: each step sets it to (1 - momentum) * buffer + momentum * mean statistic of the batch
    """

    name: str
    shape: Shape
    init: Init
    kind: Literal["parameter", "buffer"] = "parameter"
    decay: bool | None = None
    group: str = "default"
    trainable: bool = True
    momentum: float = 0.1
    from_images: FromImages | None = None

    @property
    def trained(self) -> bool:
        """Whether the optimizer changes it."""
        return self.kind == "parameter" and self.trainable

    @property
    def decays(self) -> bool:
        """Whether weight decay applies."""
        return self.trained and (len(self.shape) > 1 if self.decay is None else self.decay)


def zeros(shape: Shape, words: Words) -> float:
    """All 0."""
    return 0.0


def ones(shape: Shape, words: Words) -> float:
    """All 1."""
    return 1.0


def constant(value: float) -> Init:
    """All `value`."""
    return lambda shape, words: value


def uniform(bound: float) -> Init:
    """Uniform from -bound to bound: exact arithmetic, unlike normal draws, so a seed gives the same on any machine."""

    def init(shape: Shape, words: Words) -> Array:
        fractions = (words(math.prod(shape)) >> np.uint64(40)).astype(np.float64) * 2.0**-24  # in [0, 1)
        return (bound * (2 * fractions - 1)).reshape(shape)

    return init


def he_uniform(fan_in: int) -> Init:
    """Uniform with variance 2 / fan_in, for an output that sums `fan_in` inputs (He et al. 2015)."""
    return uniform(math.sqrt(6 / fan_in))


def uniform_fan_in(fan_in: int) -> Init:
    """Uniform with variance 1 / (3 * fan_in), PyTorch's default for the weights of its layers."""
    return uniform(1 / math.sqrt(fan_in))


def small_uniform(fan_in: int) -> Init:
    """Uniform with variance 1 / (300 * fan_in), for the last layer: its first logits hardly differ from class to class.

    So the first loss of K classes is close to log K.
    """
    return uniform(0.1 / math.sqrt(fan_in))


def dirac(others: Init) -> Init:
    """The first C filters of a weight (O, C, KH, KW) copy a channel each, as by PyTorch's dirac_; `others` the rest."""

    def init(shape: Shape, words: Words) -> Array:
        values = np.array(np.broadcast_to(others(shape, words), shape))
        channels = range(min(shape[:2]))
        values[: len(channels)] = 0
        values[channels, channels, shape[2] // 2, shape[3] // 2] = 1
        return values

    return init
