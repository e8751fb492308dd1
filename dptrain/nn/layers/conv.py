"""Convolution: the layer, and the choice of the algorithm that computes it.

    y[oh, ow, n, o] = bias[o] + sum over c, kh, kw of
                      weight[o, c, kh, kw] * padded[oh * stride + kh, ow * stride + kw, n, c]

"Convolution" is the field's name for this cross-correlation: the kernel is not flipped.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Correlation, Geometry, zeros_beyond
from dptrain.nn.convolution.im2col import Im2col
from dptrain.nn.convolution.winograd import KERNEL, Winograd
from dptrain.nn.layer import Layer, pair
from dptrain.nn.passes import Parameters, Pass
from dptrain.nn.tensor import Tensor, he_uniform, zeros

KERNELS = "kernels"  # in prepared parameters: the weight in the form that the algorithm needs
ALGORITHMS = ("im2col", "winograd2", "winograd4")

# Of the cost model, fitted to timings (see `cost`): to write one float32 takes as long as this many floating-point
# operations of a matrix product, and the work on the kernels is divided by this many samples.
FLOPS_PER_MOVE = 30
SAMPLES = 128


class Conv2d(Layer):
    """2-D convolution of x (H, W, N, C) with weight (O, C, KH, KW), plus bias (O,).

    Output (OH, OW, N, O) with OH = (H + 2 * padding - KH) // stride + 1, and OW likewise. Kernel size,
    stride and padding (zeros) are one number or (vertical, horizontal). `algorithm` is "auto", "im2col" (any
    convolution), "winograd2" or "winograd4" (kernel 3, stride 1; relative error below 1e-6 and 5e-6).
    """

    kind = "conv"

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        algorithm: str = "auto",
    ) -> None:
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}, expected at least 1")
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)
        if algorithm not in ("auto", *ALGORITHMS):
            raise ValueError(f"algorithm is {algorithm!r}, expected auto, {', '.join(ALGORITHMS)}")
        if algorithm.startswith("winograd") and not has_winograd(self.kernel_size, self.stride):
            raise ValueError(
                f"algorithm {algorithm} is for kernel_size 3 and stride 1, not {self.kernel_size} and {self.stride}"
            )
        self.algorithm = algorithm
        self.chosen = algorithm  # bind replaces "auto"

    def spec(self) -> dict[str, Any]:
        spec = super().spec()
        spec.pop("algorithm", None)
        return spec

    def tuning(self) -> dict[str, Any]:
        return {"algorithm": self.chosen}

    def bind(self, input_shape: Shape) -> Shape:
        """Also chooses the algorithm if it is "auto"."""
        if len(input_shape) != 3:
            raise ValueError(f"{self!r} needs feature maps (C, H, W), it gets {input_shape}")
        self.geometry = Geometry(
            repr(self), input_shape, self.out_channels, self.kernel_size, self.stride, self.padding
        )
        output_shape = self.geometry.output_shape
        self.chosen = cheapest(self.geometry) if self.algorithm == "auto" else self.algorithm
        self.correlation = self.correlation_for(1)
        return output_shape

    def correlation_for(self, q: int) -> Correlation:
        """The algorithm, with sums ordered by q x q windows; q is 1 or 2."""
        if self.chosen == "im2col":
            return Im2col(self.geometry, self.name, q)
        return Winograd(self.geometry, self.name, q, int(self.chosen.removeprefix("winograd")))

    def tensors(self) -> list[Tensor]:
        weight = (self.out_channels, self.geometry.input_shape[0], *self.kernel_size)
        return [
            Tensor("weight", weight, he_uniform(self.geometry.fan_in)),
            Tensor("bias", (self.out_channels,), zeros),
        ]

    def forward_flops(self) -> int:
        return 2 * self.geometry.fan_in * math.prod(self.geometry.output_shape)

    def prepare(self, parameters: Parameters, workspace: Workspace) -> Parameters:
        return with_kernels(self.correlation, parameters, workspace)

    def forward(self, x: Array, call: Pass) -> tuple[Array, Any]:
        parameters = with_kernels(self.correlation, call.parameters, call.workspace)
        sums, saved = self.correlation.forward(x, parameters[KERNELS], call.workspace)
        out_channels, height, width = self.geometry.output_shape
        y = call.workspace.array(self.name, "y", (*self.correlation.extent, x.shape[2], out_channels))
        np.add(sums[0, 0], parameters["bias"], out=self.correlation.in_own_order(y))
        return y[:height, :width], (sums, saved, parameters[KERNELS])

    def backward(self, dy: Array, saved: Any, call: Pass) -> Array | None:
        sums, saved, kernels = saved
        add_up(dy, call.gradients["bias"])
        dy = zeros_beyond(dy, self.correlation.extent, self.name, call.workspace)
        sums[0, 0] = self.correlation.in_own_order(dy)
        return self.correlation.backward(sums, saved, kernels, call.gradients["weight"], call.workspace, call.need_dx)


def add_up(dy: Array, dbias: Array) -> None:
    """dbias (O,): the sum of dy (..., N, O), all pixels first, as NumPy adds long rows faster."""
    by_sample = dy.reshape(-1, dy.shape[-2] * dy.shape[-1]).sum(axis=0)
    by_sample.reshape(dy.shape[-2:]).sum(axis=0, out=dbias)


def with_kernels(correlation: Correlation, parameters: Parameters, workspace: Workspace) -> Parameters:
    """The parameters, with the kernels that the algorithm makes of the weight."""
    if KERNELS in parameters:
        return parameters
    return {**parameters, KERNELS: correlation.prepare(parameters["weight"], workspace)}


def has_winograd(kernel_size: tuple[int, int], stride: tuple[int, int]) -> bool:
    """Whether Winograd's algorithm can compute a convolution with these."""
    return kernel_size == (KERNEL, KERNEL) and stride == (1, 1)


def cheapest(geometry: Geometry) -> str:
    """The algorithm of least cost, the first of equals. It depends on shapes alone, never on a timing."""
    possible = ALGORITHMS if has_winograd(geometry.kernel_size, geometry.stride) else ALGORITHMS[:1]
    return min(possible, key=lambda algorithm: cost(algorithm, geometry))


def cost(algorithm: str, geometry: Geometry) -> float:
    """Floating-point operations of a sample's forward pass, where each number written counts as FLOPS_PER_MOVE.

    The backward pass has the same products and moves, once for each gradient. On 82 shapes of 2 x 2 to 32 x 32 pixels
    and 1 to 512 channels the chosen algorithm took at most 14 % longer than the best, with 4 input channels 51 %
    (measured, forward and backward pass of 8 samples on one core of Zen 4).
    """
    channels, (out_channels, height, width) = geometry.input_shape[0], geometry.output_shape
    if algorithm == "im2col":
        products = 2 * geometry.fan_in * out_channels * height * width
        moves = (geometry.fan_in + out_channels) * height * width
        return products + FLOPS_PER_MOVE * moves
    m = int(algorithm.removeprefix("winograd"))
    n = m + KERNEL - 1
    tiles = -(-height // m) * -(-width // m)
    products = 2 * n**2 * channels * out_channels * tiles
    moves = ((n * m + n**2) * channels + (n**2 + n * m + m**2) * out_channels) * tiles
    # The kernels are transformed twice a step, and their gradient once a block of samples.
    of_kernels = 3 * (n**2 + n * KERNEL + KERNEL**2) * channels * out_channels / SAMPLES
    return products + FLOPS_PER_MOVE * (moves + of_kernels)
