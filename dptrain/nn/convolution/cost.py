"""The algorithms of a convolution, and a model of their cost that depends on shapes alone."""

from __future__ import annotations

import itertools

from dptrain.nn.convolution.correlation import Correlation, Geometry
from dptrain.nn.convolution.im2col import Im2col
from dptrain.nn.convolution.tiles import KERNEL, POINTS, Tiling, tilings
from dptrain.nn.convolution.winograd import Winograd

IM2COL = "im2col"
OF_TILES = {f"winograd{m}": m for m in POINTS}  # by the extent of the largest tiles
ALGORITHMS = (IM2COL, *OF_TILES)
LARGEST_TILE = 5  # that is chosen unasked

# Fitted to timings (see `cost`).
FLOPS_PER_MOVE = 30  # floating-point operations of a matrix product in the time that it takes to write one float32
SAMPLES = 128  # that share the work on the kernels


def possible_algorithms(kernel_size: tuple[int, int], stride: tuple[int, int]) -> tuple[str, ...]:
    return ALGORITHMS if kernel_size == (KERNEL, KERNEL) and stride == (1, 1) else (IM2COL,)


def correlation(algorithm: str, geometry: Geometry, q: int) -> Correlation:
    """`algorithm` or, for "auto", the cheapest one, by shape alone."""
    height, width = computed(geometry, q)
    possible = possible_algorithms(geometry.kernel_size, geometry.stride)
    if algorithm == IM2COL or possible == (IM2COL,):
        return Im2col(geometry, q)
    largest = OF_TILES.get(algorithm, LARGEST_TILE)
    ways = itertools.product(tilings(height, q, largest), tilings(width, q, largest))
    least, *tiles = min((cost_of_tiles(rows, columns, geometry), rows, columns) for rows, columns in ways)
    if algorithm == "auto" and cost_of_im2col(geometry, q) <= least:
        return Im2col(geometry, q)
    return Winograd(geometry, q, *tiles)


def computed(geometry: Geometry, q: int) -> tuple[int, int]:
    """Height and width of the output without pixels in no pooling window."""
    _, height, width = geometry.output_shape
    return height // q * q, width // q * q


def cost_of_im2col(geometry: Geometry, q: int) -> float:
    """As `cost_of_tiles`."""
    height, width = computed(geometry, q)
    out_channels = geometry.output_shape[0]
    return (2 * geometry.fan_in * out_channels + FLOPS_PER_MOVE * (geometry.fan_in + out_channels)) * height * width


def cost_of_tiles(rows: Tiling, columns: Tiling, geometry: Geometry) -> float:
    """Floating-point operations of a sample's forward pass, where each number written counts as FLOPS_PER_MOVE."""
    channels, out_channels = geometry.input_shape[0], geometry.output_shape[0]
    products = moves = of_kernels = 0
    for down in rows:
        for across in columns:
            places, tiles = down.n * across.n, down.number * across.number
            products += 2 * places * channels * out_channels * tiles
            moves += (
                (down.n * across.m + places) * channels
                + (places + down.m * across.n + down.m * across.m) * out_channels
            ) * tiles
            # The kernels are transformed once a step, and their gradient once a block of samples.
            of_kernels += (2 * places + down.n * KERNEL + KERNEL**2) * channels * out_channels
    return products + FLOPS_PER_MOVE * (moves + of_kernels / SAMPLES)
