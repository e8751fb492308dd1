"""What the algorithms of a convolution get, and their interface."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.layer import Pass
from dptrain.system.cache import DEFAULT_KIB

Strip = Callable[[slice, Array], None]  # called with rows of a map, and the sums of this strip or their gradient


class Geometry(NamedTuple):
    """The windows that a convolution reads. Shapes are (C, H, W) and (O, OH, OW), pairs (vertical, horizontal)."""

    name: str
    input_shape: Shape
    output_shape: Shape
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def fan_in(self) -> int:
        """Values that one output is summed from."""
        return self.input_shape[0] // self.groups * self.kernel_size[0] * self.kernel_size[1]


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
        self.set_cache(DEFAULT_KIB)

    def set_cache(self, kib: int) -> None:
        """Set the size of the second-level cache, by which an algorithm may choose how much it computes at once."""
        self.cache = kib << 10  # bytes

    @abstractmethod
    def prepare(self, weight: Array, workspace: Workspace) -> Any:
        """The kernels as the passes need them, from weight (O, C, KH, KW)."""

    @abstractmethod
    def forward_strips(self, x: Array, kernels: Any, workspace: Workspace, take: Strip) -> Any:
        """Compute the sums for x (H, W, N, C), strip by strip; returns what `backward_strips` needs.

        take(rows, sums) gets each strip: sums (q, q, ..., N, O) are those of `rows` of the first axis after q and q.
        They are overwritten by the next strip.
        """

    @abstractmethod
    def backward_strips(self, give: Strip, saved: Any, kernels: Any, call: Pass) -> Array | None:
        """Fill the gradient of the weight and return dx (H, W, N, C), if needed. Overwrites `saved`.

        give(rows, dsums) must fill dsums, of the same shape as in `forward_strips`, with the gradient of the sums.
        """

    @abstractmethod
    def in_order_of_sums(self, image: Array) -> Array:
        """A view of image (extent / q, N, O), its axes as those of the sums after the first two."""


class WholeMap(Correlation):
    """An algorithm that computes all sums at once, as one strip."""

    @abstractmethod
    def forward(self, x: Array, kernels: Any, workspace: Workspace) -> tuple[Array, Any]:
        """The sums for x (H, W, N, C), and what `backward` needs."""

    @abstractmethod
    def backward(self, dsums: Array, saved: Any, kernels: Any, call: Pass) -> Array | None:
        """Fill the gradient of the weight and return dx (H, W, N, C), if needed. Overwrites `saved`.

        `dsums`, the gradient of the sums, was written over the sums that `forward` returned.
        """

    def forward_strips(self, x: Array, kernels: Any, workspace: Workspace, take: Strip) -> tuple[Array, Any]:
        sums, saved = self.forward(x, kernels, workspace)
        take(slice(None), sums)
        return sums, saved

    def backward_strips(self, give: Strip, saved: tuple[Array, Any], kernels: Any, call: Pass) -> Array | None:
        sums, saved_by_forward = saved
        give(slice(None), sums)
        return self.backward(sums, saved_by_forward, kernels, call)


class PixelOrder(WholeMap):
    """An algorithm that computes its sums as an image (extent, N, O), unless it replaces the order of the sums."""

    def __init__(self, geometry: Geometry, q: int) -> None:
        super().__init__(geometry, q)
        _, height, width = geometry.output_shape
        self.extent = (height // q * q, width // q * q)  # pixels in no pooling window are not computed

    def new_sums(self, samples: int, workspace: Workspace) -> Array:
        """The image. Without pooling it is the layer's own memory, so it can be the output."""
        shape = (*self.extent, samples, self.geometry.output_shape[0])
        if self.q > 1:
            return workspace.scratch(self.name, "sums", shape)
        return workspace.array(self.name, "image of sums", shape)

    def by_window(self, sums: Array) -> Array:
        """The image as a view (q, q, OH / q, OW / q, N, O)."""
        (height, width), q = self.extent, self.q
        return sums.reshape(height // q, q, width // q, q, *sums.shape[2:]).transpose(1, 3, 0, 2, 4, 5)

    def by_pixel(self, dsums: Array) -> Array:
        """The inverse of `by_window`."""
        return dsums.transpose(2, 0, 3, 1, 4, 5).reshape(*self.extent, *dsums.shape[4:])

    def in_order_of_sums(self, image: Array) -> Array:
        return image

    def padded(self, x: Array, workspace: Workspace) -> Array:
        """x (H, W, N, C) with a border of zeros; without padding x itself."""
        if self.geometry.padding == (0, 0):
            return x
        padded = workspace.array(self.name, "padded", self._padded_shape(x.shape[2]), zeroed=True)
        np.copyto(self.inside(padded), x)  # the border stays zero
        return padded

    def new_dpadded(self, samples: int, workspace: Workspace) -> Array:
        """Zeros in the shape of the padded input, for its gradient."""
        dpadded = workspace.array(self.name, "dpadded", self._padded_shape(samples))
        dpadded.fill(0)
        return dpadded

    def _padded_shape(self, samples: int) -> Shape:
        (down, across), (channels, height, width) = self.geometry.padding, self.geometry.input_shape
        return height + 2 * down, width + 2 * across, samples, channels

    def inside(self, padded: Array) -> Array:
        """The view of padded that is x."""
        (down, across), (_, height, width) = self.geometry.padding, self.geometry.input_shape
        return padded[down : down + height, across : across + width]

    def places(self, padded: Array) -> list[tuple[int, int, Array]]:
        """For each place (kh, kw) of the kernel, the view (OH, OW, N, C) of the pixels that the outputs read there."""
        geometry = self.geometry
        starts = (
            range(0, size * step, step) for size, step in zip(geometry.kernel_size, geometry.dilation, strict=True)
        )
        (height, width), (down, across) = self.extent, geometry.stride
        return [
            (
                kh,
                kw,
                padded[row : row + (height - 1) * down + 1 : down, column : column + (width - 1) * across + 1 : across],
            )
            for (kh, row), (kw, column) in itertools.product(*map(enumerate, starts))
        ]


def zeros_beyond(image: Array, extent: tuple[int, int], name: str, workspace: Workspace) -> Array:
    """image (OH, OW, N, O), extended by rows and columns of zeros up to `extent`, if it is smaller."""
    height, width, *rest = image.shape
    if (height, width) == extent:
        return image
    larger = workspace.array(name, "extended", (*extent, *rest), zeroed=True)
    np.copyto(larger[:height, :width], image)
    return larger
