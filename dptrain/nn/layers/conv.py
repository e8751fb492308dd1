"""Convolution: the layer, and the choice of the algorithm that computes it.

    y[oh, ow, n, o] = bias[o] + sum over c, kh, kw of
                      weight[o, c, kh, kw] * padded[oh * stride + kh * dilation, ow * stride + kw * dilation, n, c]

"Convolution" is the field's name for this cross-correlation: the kernel is not flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Correlation, Geometry, PixelOrder, zeros_beyond
from dptrain.nn.convolution.cost import ALGORITHMS, correlation, possible_algorithms
from dptrain.nn.layer import Layer, Parameters, Pass, feature_maps, pair, whole_number, windows
from dptrain.nn.tensor import Init, Tensor, dirac, he_uniform, zeros

KERNELS = "kernels"  # in prepared parameters: the weight in the form that the algorithm needs


class Conv2d(Layer):
    """2-D convolution of x (H, W, N, C) with weight (O, C / groups, KH, KW), plus bias (O,) unless `bias` is False.

    Output (OH, OW, N, O) with OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1, and OW likewise. Kernel
    size, stride, padding (zeros) and dilation are one number or (vertical, horizontal). Each group of output channels
    reads one group of input channels; with as many groups as channels the convolution is depthwise.

    The weight begins as `init(fan_in)`, such as `he_uniform` or `uniform_fan_in`. With `identity` the first filters
    begin as identities, one for each channel that a group reads.

    `algorithm` is "auto", which chooses by shape, or one of these:

    im2col                    one group, no dilation
    winograd2 to winograd6    the same with kernel 3 and stride 1; the number is the largest extent of a tile
    pointwise                 one group, kernel 1, no padding
    depthwise                 as many groups as input channels and as output channels
    grouped                   any convolution

    "auto" uses tiles of at most 5. The rounding error of Winograd's algorithms relative to the norm, with up to 256
    channels, is below 1e-6 for tiles of 2 and 3, 2e-6 for 4, 4e-6 for 5 and 8e-6 for 6.
    """

    kind = "conv"
    unspecified = ("algorithm", "init", "identity")

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        groups: int = 1,
        dilation: int | tuple[int, int] = (1, 1),
        init: Callable[[int], Init] = he_uniform,
        identity: bool = False,
        algorithm: str = "auto",
    ) -> None:
        self.out_channels = whole_number(out_channels, "out_channels")
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        self.dilation = pair(dilation, "dilation", 1)
        self.bias = bias
        if out_channels % whole_number(groups, "groups"):
            raise ValueError(f"groups is {groups}, expected a divisor of out_channels {out_channels}")
        self.groups = groups
        self.init, self.identity = init, identity
        if algorithm not in ("auto", *ALGORITHMS):
            raise ValueError(f"algorithm is {algorithm!r}, expected auto, {', '.join(ALGORITHMS)}")
        self.algorithm = algorithm

    def tuning(self) -> dict[str, Any]:
        return {"algorithm": self.chosen}

    def bind(self, input_shape: Shape) -> Shape:
        self.input_shape = channels, *extents = feature_maps(self, input_shape)
        if channels % self.groups:
            raise ValueError(f"{self!r} gets {channels} channels, expected a multiple of its groups")
        padded = [extent + 2 * padding for extent, padding in zip(extents, self.padding, strict=True)]
        seen = [1 + (size - 1) * step for size, step in zip(self.kernel_size, self.dilation, strict=True)]
        self.output_shape = (self.out_channels, *windows(padded, seen, self.stride, repr(self)))
        shapes = self.input_shape, self.output_shape
        self.geometry = Geometry(
            self.name, *shapes, self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        )
        possible = possible_algorithms(self.geometry)
        if self.algorithm not in ("auto", *possible):
            raise ValueError(
                f"algorithm is {self.algorithm}, expected auto, {', '.join(possible)} for {self!r} of {channels} "
                "channels"
            )
        self.correlation = self.correlation_for(1)
        return self.output_shape

    def correlation_for(self, q: int) -> Correlation:
        """The algorithm, with sums ordered by q x q windows; q is 1 or 2."""
        chosen = correlation(self.algorithm, self.geometry, q)
        self.chosen = chosen.algorithm
        return chosen

    def set_cache(self, kib: int) -> None:
        self.correlation.set_cache(kib)

    def tensors(self) -> list[Tensor]:
        shape = (self.out_channels, self.input_shape[0] // self.groups, *self.kernel_size)
        init = self.init(self.geometry.fan_in)
        weight = Tensor("weight", shape, dirac(init) if self.identity else init)
        return [weight, Tensor("bias", shape[:1], zeros)] if self.bias else [weight]

    def forward_flops(self) -> int:
        return 2 * self.geometry.fan_in * math.prod(self.output_shape)

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        return with_kernels(self.correlation, parameters, workspace)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        parameters = with_kernels(self.correlation, call.parameters, call.workspace)
        out_channels, height, width = self.output_shape
        if isinstance(self.correlation, PixelOrder):
            sums, saved = self.correlation.forward(x, parameters[KERNELS], call.workspace)
            if self.bias:
                row = np.tile(parameters["bias"], x.shape[2])  # NumPy adds long rows faster
                sums[0, 0].reshape(math.prod(self.correlation.extent), len(row))[...] += row
            return sums[0, 0, :height, :width], (saved, parameters[KERNELS])
        y = call.workspace.array(self.name, "y", (*self.correlation.extent, x.shape[2], out_channels))
        ordered = self.correlation.in_order_of_sums(y)

        def take(rows: slice, sums: Array) -> None:
            if self.bias:
                np.add(sums[0, 0], parameters["bias"], out=ordered[rows])
            else:
                np.copyto(ordered[rows], sums[0, 0])

        saved = self.correlation.forward_strips(x, parameters[KERNELS], call.workspace, take)
        return y[:height, :width], (saved, parameters[KERNELS])

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        saved, kernels = saved
        if self.bias:
            add_up(dy, call.gradients["bias"])
        dy = zeros_beyond(dy, self.correlation.extent, self.name, call.workspace)
        if isinstance(self.correlation, PixelOrder):
            return self.correlation.backward(dy[None, None], saved, kernels, call)
        ordered = self.correlation.in_order_of_sums(dy)

        def give(rows: slice, dsums: Array) -> None:
            dsums[0, 0] = ordered[rows]

        return self.correlation.backward_strips(give, saved, kernels, call)


def add_up(dy: Array, dbias: Array) -> None:
    """dbias (O,): the sum of dy (..., N, O), pixels first, as NumPy adds long rows faster."""
    by_sample = dy.reshape(-1, dy.shape[-2] * dy.shape[-1]).sum(axis=0)
    by_sample.reshape(dy.shape[-2:]).sum(axis=0, out=dbias)


def with_kernels(correlation: Correlation, parameters: Parameters, workspace: Workspace) -> Parameters:
    """The parameters, with the kernels that the algorithm makes of the weight."""
    if KERNELS in parameters:
        return parameters
    return {**parameters, KERNELS: correlation.prepare(parameters["weight"], workspace)}
