"""What the algorithms of a convolution have in common: geometry, phases, and what they offer.

A padded input is kept in m x m *phases*, every m-th pixel together, because then what an algorithm reads
for neighbouring windows lies side by side:

    phases[r, s, c, a, b, n] = padded[c, m * a + r, m * b + s, n]

With m = 1 that is the padded input itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dptrain.nn.layer import Shape, windows
from dptrain.nn.workspace import Array, Workspace


@dataclass(frozen=True)
class Geometry:
    """Which windows of x (C, H, W, N) a convolution sees; pairs are (vertical, horizontal)."""

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

    The sums come as an array (q, q, ...) whose first two axes are an output pixel's place in its q x q pooling
    window, so that pooling over them reads whole blocks; q is 1 where nothing is pooled. The order of the other
    axes is the algorithm's own: `in_own_order` shows an image in it. `extent` is the height and width of all
    sums: those of the output, but some more (which mean nothing) where that suits the algorithm, or up to q - 1
    less where no pooling window reaches.
    """

    extent: tuple[int, int]

    def __init__(self, geometry: Geometry, name: str, q: int) -> None:
        self.geometry, self.name, self.q = geometry, name, q

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The kernels as the passes need them, from weight (O, C, KH, KW)."""
        return weight

    @abstractmethod
    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, Any]:
        """The sums for x (C, H, W, N), and what `backward` needs. The sums' memory is also its `dsums`."""

    @abstractmethod
    def backward(
        self, dsums: Array, saved: Any, kernels: Array, dweight: Array, workspace: Workspace, need_dx: bool
    ) -> Array | None:
        """Fill `dweight` (O, C, KH, KW) and return dx, if needed.

        `dsums`, the gradient of the sums, was written over the sums that `forward` returned. Overwrites `saved`.
        """

    @abstractmethod
    def in_own_order(self, image: Array) -> Array:
        """A view of image (O, extent / q, N), its axes as those of the sums after the first two."""

    def pad(self, x: Array, m: int, extent: tuple[int, int], workspace: Workspace) -> Array:
        """x in phases (m, m, C, ., ., N), with zeros around it up to `extent` (height, width).

        The border is zeroed once and never written.
        """
        channels, *_, samples = x.shape
        shape = (m, m, channels, -(-extent[0] // m), -(-extent[1] // m), samples)
        phases = workspace.array(self.name, "phases", shape, zeroed=True)
        for source, place in _places(self.geometry, m):
            phases[place] = x[source]
        return phases

    def unpad(self, phases: Array, m: int, workspace: Workspace) -> Array:
        """x (C, H, W, N) without the padding: the inverse, and the adjoint, of `pad`."""
        x = workspace.array(self.name, "dx", (*self.geometry.input_shape, phases.shape[-1]))
        for source, place in _places(self.geometry, m):
            x[source] = phases[place]
        return x


@cache
def _places(geometry: Geometry, m: int) -> list[tuple[tuple[slice, ...], tuple[Any, ...]]]:
    """For each phase: the pixels of x that belong to it, and where they lie in the phases."""
    _, height, width = geometry.input_shape
    rows = [_phase(r, m, geometry.padding[0], height) for r in range(m)]
    columns = [_phase(s, m, geometry.padding[1], width) for s in range(m)]
    return [
        ((slice(None), row, column), (r, s, slice(None), down, across))
        for r, (row, down) in enumerate(rows)
        for s, (column, across) in enumerate(columns)
    ]


def _phase(r: int, m: int, padding: int, extent: int) -> tuple[slice, slice]:
    """Phase r along one axis: which pixels of x, and their indices within the phase."""
    first = (r - padding) % m
    count = max(0, -(-(extent - first) // m))
    start = (first + padding) // m
    return slice(first, None, m), slice(start, start + count)


def zeros_beyond(image: Array, extent: tuple[int, int], name: str, workspace: Workspace) -> Array:
    """image (O, OH, OW, N) with zeros after its last row and column up to `extent`; itself when it has that."""
    channels, height, width, samples = image.shape
    if (height, width) == extent:
        return image
    larger = workspace.array(name, "extended", (channels, *extent, samples), zeroed=True)
    np.copyto(larger[:, :height, :width], image)
    return larger
