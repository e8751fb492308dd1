"""The algorithms of a convolution, and a model of their cost that depends on shapes alone."""

from __future__ import annotations

import itertools

from dptrain.nn.convolution.correlation import Correlation, Geometry
from dptrain.nn.convolution.depthwise import Depthwise
from dptrain.nn.convolution.grouped import Grouped
from dptrain.nn.convolution.im2col import Im2col
from dptrain.nn.convolution.pointwise import Pointwise
from dptrain.nn.convolution.tiles import KERNEL, POINTS, Tiling, tilings
from dptrain.nn.convolution.winograd import Winograd, WinogradByTile

OF_TILES = {f"winograd{m}": m for m in POINTS}  # with the extent of the largest tiles
OTHERS: dict[str, type[Correlation]] = {
    "im2col": Im2col,
    "pointwise": Pointwise,
    "depthwise": Depthwise,
    "grouped": Grouped,
}
DENSE = ("im2col", *OF_TILES)  # for one group without dilation
ALGORITHMS = (*DENSE, "pointwise", "depthwise", "grouped")
LARGEST_TILE = 5  # for "auto"; tiles of 6 are up to a tenth faster and round three times as much

# In floating-point operations of a matrix product, fitted to timings: see `correlation`.
PER_MOVE = 16  # one number written by a transform
PER_VALUE_OF_COLUMNS = 25  # one number of im2col's columns or sums
PER_VALUE_OF_KERNELS = 40  # one number of the kernels as an algorithm needs them, for each block of samples
PER_PART = 1_000_000  # the calls for one part of the tiles, for each block of samples
SAMPLES = 16  # of a block


def possible_algorithms(geometry: Geometry) -> tuple[str, ...]:
    """Those that can compute a convolution. "auto" is the first one, or if Winograd's are possible, the cheapest."""
    channels, out_channels = geometry.input_shape[0], geometry.output_shape[0]
    if geometry.groups > 1 or geometry.dilation != (1, 1):
        depthwise = geometry.groups == channels == out_channels
        return ("depthwise", "grouped") if depthwise else ("grouped",)
    if geometry.kernel_size == (1, 1) and geometry.padding == (0, 0):
        return ("pointwise", "im2col", "grouped")
    winograd = geometry.kernel_size == (KERNEL, KERNEL) and geometry.stride == (1, 1)
    return (*(DENSE if winograd else DENSE[:1]), "grouped")


def correlation(algorithm: str, geometry: Geometry, q: int) -> Correlation:
    """A possible algorithm for sums ordered by q x q windows; "auto" is the cheapest one, by shape and not by a timing.

    On 22 shapes of 1 x 1 to 32 x 32 pixels and 3 to 512 channels, among them those of airbench, ResNet-20 and convnet,
    it took at most 19 % longer than the best, 2 % on average (measured: both passes of 8, 32 and 128 samples on a core
    of Zen 4, with OpenBLAS's AVX2 kernels).
    """
    possible = possible_algorithms(geometry)
    if algorithm == "auto" and not set(possible) & set(OF_TILES):
        algorithm = possible[0]
    if algorithm in OTHERS:
        return OTHERS[algorithm](geometry, q)
    height, width = computed(geometry, q)
    largest = OF_TILES.get(algorithm, LARGEST_TILE)
    ways = itertools.product(tilings(height, q, largest), tilings(width, q, largest))
    least, *tiles = min((cost_of_tiles(rows, columns, geometry), rows, columns) for rows, columns in ways)
    if algorithm == "auto" and cost_of_im2col(geometry, q) <= least:
        return Im2col(geometry, q)
    by_tile = q > 1 and WinogradByTile.is_possible(q, *tiles)
    return (WinogradByTile if by_tile else Winograd)(geometry, q, *tiles)


def computed(geometry: Geometry, q: int) -> tuple[int, int]:
    """Height and width of the output without pixels in no pooling window."""
    _, height, width = geometry.output_shape
    return height // q * q, width // q * q


def cost_of_im2col(geometry: Geometry, q: int) -> float:
    """As `cost_of_tiles`."""
    (height, width), out_channels = computed(geometry, q), geometry.output_shape[0]
    kernels = geometry.fan_in * out_channels
    of_pixel = 2 * kernels + PER_VALUE_OF_COLUMNS * (geometry.fan_in + out_channels)
    return of_pixel * height * width + PER_VALUE_OF_KERNELS * kernels / SAMPLES


def cost_of_tiles(rows: Tiling, columns: Tiling, geometry: Geometry) -> float:
    """A third of the time of a sample's forward and backward pass, in floating-point operations of a matrix product."""
    channels, out_channels = geometry.input_shape[0], geometry.output_shape[0]
    of_sample = of_block = 0
    for down, across in itertools.product(rows, columns):
        tiles, places = down.number * across.number, down.n * across.n
        products = places * channels * out_channels
        moves = (down.n * across.m + places) * channels
        moves += (places + down.m * across.n + down.m * across.m) * out_channels
        transforms = (down.n**2 * across.m + places * across.n) * channels
        transforms += (down.m * down.n * across.n + down.m * across.m * across.n) * out_channels
        of_sample += (2 * products + 2 * transforms + PER_MOVE * moves) * tiles
        of_block += PER_VALUE_OF_KERNELS * products + PER_PART
    return of_sample + of_block / SAMPLES
