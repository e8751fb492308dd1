"""The interface of a convolution's algorithms, and the geometry that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import windows


@dataclass(frozen=True)
class Geometry:
    """The windows of x (H, W, N, C) that a convolution reads; input_shape (C, H, W), pairs (vertical, horizontal)."""

    name: str
    input_shape: Shape
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def output_shape(self) -> Shape:
        """(O, OH, OW); ValueError when no window fits."""
        extents = zip(self.input_shape[1:], self.kernel_size, self.stride, self.padding, strict=True)
        height, width = (
            windows(extent + 2 * padding, kernel, stride, f"{self.name}, {axis}")
            for axis, (extent, kernel, stride, padding) in zip(("height", "width"), extents, strict=True)
        )
        return (self.out_channels, height, width)

    @property
    def fan_in(self) -> int:
        """Values that one output is summed from."""
        return self.input_shape[0] * self.kernel_size[0] * self.kernel_size[1]


class Correlation(ABC):
    """One way to compute the sums of a convolution (without its bias), forward and backward.

    The sums are an array (q, q, ..., N, O). Its first two axes are an output pixel's place in its q x q pooling window,
    so that pooling over them reads whole blocks; q is 1 where nothing is pooled. Each algorithm orders the axes between
    in its own way: `in_own_order` views an image in that order. `extent` is the height and width of all sums. It is
    that of the output, but an algorithm may add rows and columns (whose values mean nothing and whose gradient must be
    zero), or leave out up to q - 1 that are in no pooling window.
    """

    extent: tuple[int, int]

    def __init__(self, geometry: Geometry, name: str, q: int) -> None:
        self.geometry, self.name, self.q = geometry, name, q

    @abstractmethod
    def prepare(self, weight: Array, workspace: Workspace) -> Any:
        """The kernels as the passes need them, from weight (O, C, KH, KW)."""

    @abstractmethod
    def forward(self, x: Array, kernels: Any, workspace: Workspace) -> tuple[Array, Any]:
        """The sums for x (H, W, N, C), and what `backward` needs. The sums' memory is also its `dsums`."""

    @abstractmethod
    def backward(
        self, dsums: Array, saved: Any, kernels: Any, dweight: Array, workspace: Workspace, need_dx: bool
    ) -> Array | None:
        """Fill `dweight` (O, C, KH, KW) and return dx (H, W, N, C), if needed.

        `dsums`, the gradient of the sums, was written over the sums that `forward` returned. Overwrites `saved`.
        """

    @abstractmethod
    def in_own_order(self, image: Array) -> Array:
        """A view of image (extent / q, N, O), its axes as those of the sums after the first two."""


def zeros_beyond(image: Array, extent: tuple[int, int], name: str, workspace: Workspace) -> Array:
    """image (OH, OW, N, O), extended by rows and columns of zeros up to `extent`; the image itself if it has that."""
    height, width, *rest = image.shape
    if (height, width) == extent:
        return image
    larger = workspace.array(name, "extended", (*extent, *rest), zeroed=True)
    np.copyto(larger[:height, :width], image)
    return larger
