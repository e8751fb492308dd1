"""The algorithms of a convolution, and a model of their cost that depends on shapes alone."""

from __future__ import annotations

import math

from dptrain.nn.convolution.correlation import Geometry
from dptrain.nn.convolution.winograd import KERNEL

DENSE = ("im2col", "winograd2", "winograd4")  # for one group without dilation
ALGORITHMS = (*DENSE, "pointwise", "depthwise", "grouped")

# Fitted to timings (see `cost`).
FLOPS_PER_MOVE = 30  # floating-point operations of a matrix product in the time that it takes to write one float32
SAMPLES = 128  # that share the work on the kernels


def possible_algorithms(geometry: Geometry) -> tuple[str, ...]:
    """Those that can compute a convolution."""
    channels, out_channels = geometry.input_shape[0], geometry.output_shape[0]
    if geometry.groups > 1 or geometry.dilation != (1, 1):
        depthwise = geometry.groups == channels == out_channels
        return ("depthwise", "grouped") if depthwise else ("grouped",)
    if geometry.kernel_size == (1, 1) and geometry.padding == (0, 0):
        return ("pointwise", "im2col", "grouped")
    winograd = geometry.kernel_size == (KERNEL, KERNEL) and geometry.stride == (1, 1)
    return (*(DENSE if winograd else DENSE[:1]), "grouped")


def cost(algorithm: str, geometry: Geometry) -> float:
    """Floating-point operations of a sample's forward pass, where each number written counts as FLOPS_PER_MOVE.

    On 82 shapes of 2 x 2 to 32 x 32 pixels and 1 to 512 channels the chosen algorithm took at most 14 % longer than the
    best, with 4 input channels 51 % (measured, both passes of 8 samples on one core of Zen 4).
    """
    channels, (out_channels, height, width) = geometry.input_shape[0], geometry.output_shape
    if algorithm in ("pointwise", "depthwise"):
        return 0.0  # where they are possible, they are the fastest
    if algorithm == "grouped":
        return math.inf
    if algorithm == "im2col":
        return (2 * geometry.fan_in * out_channels + FLOPS_PER_MOVE * (geometry.fan_in + out_channels)) * height * width
    m = int(algorithm.removeprefix("winograd"))
    n = m + KERNEL - 1
    tiles = -(-height // m) * -(-width // m)
    products = 2 * n**2 * channels * out_channels * tiles
    moves = ((n * m + n**2) * channels + (n**2 + n * m + m**2) * out_channels) * tiles
    # The kernels are transformed twice a step, and their gradient once a block of samples.
    of_kernels = 3 * (n**2 + n * KERNEL + KERNEL**2) * channels * out_channels / SAMPLES
    return products + FLOPS_PER_MOVE * (moves + of_kernels)
