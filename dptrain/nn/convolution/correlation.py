"""What the algorithms of a convolution get, and their interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Pass


class Geometry(NamedTuple):
    """The windows that a convolution reads. Shapes are (C, H, W) and (O, OH, OW), pairs (vertical, horizontal)."""

    name: str
    input_shape: Shape
    output_shape: Shape
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def fan_in(self) -> int:
        """Values that one output is summed from."""
        return self.input_shape[0] * self.kernel_size[0] * self.kernel_size[1]


class Correlation(ABC):
    """One way to compute the sums of a convolution (without its bias), forward and backward.

    The sums are an array (q, q, ..., N, O). Its first two axes are an output pixel's place in its q x q pooling window,
    so that pooling reads whole blocks; q is 1 without pooling. The axes between differ by algorithm: `in_order_of_sums`
    views an image in that order. `extent` is the height and width of all sums: that of the output, but an algorithm may
    add rows and columns without meaning, whose gradient must be zero, or leave out up to q - 1 in no pooling window.
    `algorithm` names it in checkpoints: another name means that the bits may differ.
    """

    algorithm: str
    extent: tuple[int, int]

    def __init__(self, geometry: Geometry, q: int) -> None:
        self.geometry, self.name, self.q = geometry, geometry.name, q

    @abstractmethod
    def prepare(self, weight: Array, workspace: Workspace) -> Any:
        """The kernels as the passes need them, from weight (O, C, KH, KW)."""

    @abstractmethod
    def forward(self, x: Array, kernels: Any, workspace: Workspace) -> tuple[Array, Any]:
        """The sums for x (H, W, N, C), and what `backward` needs."""

    @abstractmethod
    def backward(self, dsums: Array, saved: Any, kernels: Any, call: Pass) -> Array | None:
        """Fill the gradient of the weight and return dx (H, W, N, C), if needed. Overwrites `saved`.

        `dsums`, the gradient of the sums, was written over the sums that `forward` returned.
        """

    @abstractmethod
    def in_order_of_sums(self, image: Array) -> Array:
        """A view of image (extent / q, N, O), its axes as those of the sums after the first two."""


def zeros_beyond(image: Array, extent: tuple[int, int], name: str, workspace: Workspace) -> Array:
    """image (OH, OW, N, O), extended by rows and columns of zeros up to `extent`, if it is smaller."""
    height, width, *rest = image.shape
    if (height, width) == extent:
        return image
    larger = workspace.array(name, "extended", (*extent, *rest), zeroed=True)
    np.copyto(larger[:height, :width], image)
    return larger
