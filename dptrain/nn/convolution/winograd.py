"""Winograd's minimal filtering: a 3x3 convolution of stride 1 with fewer multiplications (Lavin and Gray 2015).

An m x m tile of the output depends on n x n pixels of the input, n = m + 2. In one dimension, with g the kernel
and d the pixels, F(m, 3) is

    y = A' [(G g) * (B' d)]           "*" element by element: n multiplications instead of 3 m

and in two dimensions the same along both axes. All three transforms are linear: the sum over channels is taken
between them, as n * n matrix products, and each gradient is computed by the adjoints of the same transforms.

    d[i, j, t, N, c]    pixel (i, j) of the n x n that tile t reads    V = B' d B       along i and along j
    w[o, c, kh, kw]     the kernels                                    U = G w G'       along kh and along kw
    M[i, j] = V[i, j] @ U[i, j]                                        Y = A' M A       the m x m outputs

Tiles may have two sizes along each axis. Those of one size along both are a *part* of the map, with its own products.

Each transform along one axis is a matrix product over everything else: all tiles, samples and channels. The transforms
of the pixels read the padded input in place, although its tiles overlap, and those of the outputs write the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Geometry, PixelOrder
from dptrain.nn.convolution.products import matmul
from dptrain.nn.convolution.tiles import FAMILY, KERNEL, SHARED, Tiles, Tiling, transforms
from dptrain.nn.layer import Pass


class Winograd(PixelOrder):
    """Kernels 3x3 with stride 1, any padding; `rows` and `columns` are the tiles along the height and the width.

    The tiles cover the output, and may reach beyond it. Outputs in no pooling window may be left out.
    """

    def __init__(self, geometry: Geometry, q: int, rows: Tiling, columns: Tiling) -> None:
        super().__init__(geometry, q)
        axes = ["+".join(f"{one.number}*{one.m}" for one in axis) for axis in (rows, columns)]
        self.algorithm = f"{FAMILY} {axes[0]}" if axes[0] == axes[1] else f"{FAMILY} {axes[0]} by {axes[1]}"
        self.rows, self.columns = rows, columns
        self.extent = (rows[-1].stop, columns[-1].stop)
        (ph, pw), (_, height, width) = geometry.padding, geometry.input_shape
        self._padded = (max(height + 2 * ph, self.extent[0] + SHARED), max(width + 2 * pw, self.extent[1] + SHARED))
        sizes = {tiles.m for tiles in (*rows, *columns)}
        matrices = {kind: {m: [one.astype(kind) for one in transforms(m)] for m in sizes} for kind in ("f", "d")}
        self.parts = [Part(self.name, down, across, self.extent[1], matrices) for down in rows for across in columns]

    def prepare(self, weight: Array, workspace: Workspace) -> list[Array]:
        """The transformed kernels of each part: (n * n, O, C)."""
        source = weight.transpose(2, 3, 0, 1)
        places_first = workspace.scratch(self.name, "kernels", source.shape)
        np.copyto(places_first, source)
        return [part.prepare(places_first, workspace) for part in self.parts]

    def forward(self, x: Array, kernels: list[Array], workspace: Workspace) -> tuple[Array, list[Array]]:
        padded = workspace.array(self.name, "padded", (*self._padded, *x.shape[2:]), zeroed=True)
        self.inside(padded)[...] = x  # the border stays zero
        sums, out_channels = self.new_sums(x.shape[2], workspace), self.geometry.output_shape[0]
        transformed = []
        for part, u in zip(self.parts, kernels, strict=True):  # parts with the same rows follow each other
            v = part.new_v(x, workspace)
            arrays = part.arrays(padded, v, out_channels, "forward", workspace)
            if part.columns is self.columns[0]:
                part.transform_along_height(arrays)  # for all columns
            part.forward(arrays, u, self._outputs(part, sums))
            transformed.append(v)
        return self.by_window(sums), transformed

    def backward(self, dsums: Array, transformed: list[Array], kernels: list[Array], call: Pass) -> Array | None:
        workspace, dweight = call.workspace, call.gradients["weight"]
        dy, out_channels = self.by_pixel(dsums), len(dweight)
        dpadded = workspace.array(self.name, "dpadded", (*self._padded, dsums.shape[-2], dweight.shape[1]))
        for unread in (dpadded[self.extent[0] + SHARED :], dpadded[:, self.extent[1] + SHARED :]):
            unread.fill(0)  # each time: other gradients may have been added to the last dx
        dkernels = workspace.scratch(self.name, "dkernels", (KERNEL, KERNEL, *dweight.shape[:2]))
        of_part = workspace.scratch(self.name, "dkernels of a part", dkernels.shape)
        # From the last part to the first: a part adds to the pixels that it has in common with the next one.
        for part, v, u in reversed(list(zip(self.parts, transformed, kernels, strict=True))):
            arrays = part.arrays(dpadded, v, out_channels, "backward", workspace)
            last = part is self.parts[-1]
            part.backward(arrays, self._outputs(part, dy), dkernels if last else of_part, workspace)
            if not last:
                dkernels += of_part
            if call.need_dx:
                part.backward_to_between(arrays, u, part.columns is self.columns[-1], workspace)
                if part.columns is self.columns[0]:
                    part.backward_along_height(arrays, part.rows is self.rows[-1], workspace)
        np.copyto(dweight, dkernels.transpose(2, 3, 0, 1))
        return self.inside(dpadded) if call.need_dx else None

    def _outputs(self, part: Part, sums: Array) -> Array:
        """The outputs of a part, as a view (m, tiles, tiles, m, R)."""
        return part.outputs(sums)


class WinogradByTile(Winograd):
    """The same sums in the order of tiles, (m, m, tiles, tiles, N, O) instead of an image.

    For pooling, which then compares long rows, of all tiles, in two thirds of the time (measured, the default network's
    conv2). The tiles have one size, and no pooling window is in two of them.
    """

    @staticmethod
    def is_possible(q: int, rows: Tiling, columns: Tiling) -> bool:
        return len(rows) == len(columns) == 1 and rows[0].m % q == columns[0].m % q == 0

    def _outputs(self, part: Part, sums: Array) -> Array:
        return sums.reshape(*sums.shape[:4], -1).transpose(0, 2, 3, 1, 4)

    def new_sums(self, samples: int, workspace: Workspace) -> Array:
        down, across = self.rows[0], self.columns[0]
        shape = (down.m, across.m, down.number, across.number, samples, self.geometry.output_shape[0])
        return workspace.scratch(self.name, "sums", shape)

    def by_window(self, sums: Array) -> Array:
        (down, across, *others), q = sums.shape, self.q
        return sums.reshape(down // q, q, across // q, q, *others).transpose(1, 3, 0, 2, 4, 5, 6, 7)

    def by_pixel(self, dsums: Array) -> Array:
        (down, across), q = dsums.shape[2:4], self.q
        return dsums.transpose(2, 0, 3, 1, 4, 5, 6, 7).reshape(down * q, across * q, *dsums.shape[4:])

    def in_order_of_sums(self, image: Array) -> Array:
        down, across = self.rows[0], self.columns[0]
        tiles = image.reshape(down.number, down.m // self.q, across.number, across.m // self.q, *image.shape[2:])
        return tiles.transpose(1, 3, 0, 2, 4, 5)


class Arrays(NamedTuple):
    """The arrays of a part. R stands for N * C values of the input or N * O of the output."""

    padded: Array  # (H, W * R), W being the part of a row that is read
    read: Array  # the pixels in `padded` that each row of tiles reads: (tiles, n, W * R)
    between: Array  # transformed along the height: (n, tiles, W, R)
    written: Array  # a view of `between`: (tiles, n, W * R)
    read_between: Array  # the pixels in `between` that each tile reads: (n, tiles, tiles, n, R)
    v: Array  # (n * n, tiles * tiles * N, C)
    tiles: Array  # a view of it: (n, tiles, tiles, n, R)
    products: Array  # (n * n, tiles * tiles * N, O)
    half: Array  # transformed along the height: (m, n, tiles, tiles, N, O)
    half_tiles: Array  # a view of it: (m, tiles, tiles, n, R)


class Part:
    """The tiles of one size along each axis."""

    def __init__(
        self, name: str, rows: Tiles, columns: Tiles, width: int, matrices: dict[str, dict[int, list[Array]]]
    ) -> None:
        self.rows, self.columns, self.width = rows, columns, width + SHARED  # of a row, in all its parts
        self.name, self._row = f"{name} {rows.m}x{columns.m}", f"{name} {rows.m}"
        self._matrices = {kind: (of_size[rows.m], of_size[columns.m]) for kind, of_size in matrices.items()}

    def prepare(self, places_first: Array, workspace: Workspace) -> Array:
        """The transformed kernels (n * n, O, C), from (KH, KW, O, C)."""
        shape = places_first.shape[2:]
        (_, down, _), (_, across, _) = self._matrices[workspace.dtype.char]
        half = workspace.scratch(self.name, "half of kernels", (self.rows.n, KERNEL, *shape))
        u = workspace.array(self.name, "kernels transformed", (self.rows.n, self.columns.n, *shape))
        along_both(down, across, places_first, half, u)
        return u.reshape(-1, *shape)

    def new_v(self, x: Array, workspace: Workspace) -> Array:
        """For the transformed pixels: (n, n, tiles, tiles, N, C)."""
        shape = (self.rows.n, self.columns.n, self.rows.number, self.columns.number, *x.shape[2:])
        return workspace.array(self.name, "pixels transformed", shape)

    def arrays(self, padded: Array, v: Array, out_channels: int, direction: str, workspace: Workspace) -> Arrays:
        """For padded (H, W, N, C), or its gradient, and v, with the memory that both passes use."""
        n, m, counts, samples = (self.rows.n, self.columns.n), self.rows.m, v.shape[2:4], v.shape[4]
        between = workspace.scratch(self._row, "between axes", (n[0], counts[0], self.width, math.prod(v.shape[4:])))
        products = workspace.scratch(self.name, "products", (*n, *counts, samples, out_channels))
        half = workspace.scratch(self.name, "half", (m, n[1], *counts, samples, out_channels))
        return workspace.views(self.name, direction, (padded, between, v, products, half), self._views)

    def _views(self, padded: Array, between: Array, v: Array, products: Array, half: Array) -> Arrays:
        places, (_, _, down, across, *_) = v.shape[0] * v.shape[1], v.shape
        rows = padded[:, : self.width].reshape(len(padded), -1)
        return Arrays(
            rows,
            self.rows.windows(rows),
            between,
            between.reshape(*between.shape[:2], -1).swapaxes(0, 1),
            self.columns.windows(between),
            v.reshape(places, -1, v.shape[-1]),
            v.reshape(*v.shape[:2], down, across, -1).transpose(0, 2, 3, 1, 4),
            products.reshape(places, -1, products.shape[-1]),
            half,
            half.reshape(*half.shape[:2], down, across, -1).transpose(0, 2, 3, 1, 4),
        )

    def outputs(self, image: Array) -> Array:
        """The part's outputs in image (H, W, N, O), as a view (m, tiles, tiles, m, R)."""
        rows = self.rows.outputs(image.reshape(len(image), -1))
        return self.columns.outputs(rows.reshape(*rows.shape[:2], image.shape[1], -1).swapaxes(0, 1))

    def transform_along_height(self, arrays: Arrays) -> None:
        """Of the pixels, for all parts with the same rows."""
        (_, _, down), _ = self._matrices[arrays.v.dtype.char]
        matmul(down, arrays.read, out=arrays.written)

    def forward(self, arrays: Arrays, u: Array, outputs: Array) -> None:
        (to_rows, _, _), (to_columns, _, across) = self._matrices[arrays.v.dtype.char]
        matmul(across, arrays.read_between, out=arrays.tiles)
        matmul(arrays.v, u.swapaxes(1, 2), out=arrays.products)
        n, half = self.rows.n, arrays.half
        matmul(to_rows, arrays.products.reshape(n, -1), out=half.reshape(len(half), -1))
        matmul(to_columns, arrays.half_tiles, out=outputs)

    def backward(self, arrays: Arrays, doutputs: Array, dkernels: Array, workspace: Workspace) -> None:
        """Turn the gradient of the outputs into that of the products, and fill `dkernels` (KH, KW, O, C)."""
        shape = dkernels.shape[2:]
        (to_rows, down, _), (to_columns, across, _) = self._matrices[arrays.v.dtype.char]
        matmul(to_columns.T, doutputs, out=arrays.half_tiles)
        n, half, dproducts = (self.rows.n, self.columns.n), arrays.half, arrays.products
        matmul(to_rows.T, half.reshape(len(half), -1), out=dproducts.reshape(n[0], -1))
        du = workspace.scratch(self.name, "dkernels transformed", (*n, *shape))
        matmul(dproducts.swapaxes(1, 2), arrays.v, out=du.reshape(-1, *shape))
        half = workspace.scratch(self.name, "half of dkernels", (KERNEL, n[1], *shape))
        along_both(down.T, across.T, du, half, dkernels)

    def backward_to_between(self, arrays: Arrays, u: Array, last: bool, workspace: Workspace) -> None:
        """The gradient of the transformed pixels, written over them, and of the pixels between the two transforms."""
        _, (_, _, across) = self._matrices[arrays.v.dtype.char]
        matmul(arrays.products, u, out=arrays.v)
        scatter(across.T, arrays.tiles, self.columns, last, arrays.between, workspace)

    def backward_along_height(self, arrays: Arrays, last: bool, workspace: Workspace) -> None:
        (_, _, down), _ = self._matrices[arrays.v.dtype.char]
        scatter(down.T, arrays.written, self.rows, last, arrays.padded, workspace)


def scatter(adjoint: Array, values: Array, tiles: Tiles, last: bool, pixels: Array, workspace: Workspace) -> None:
    """The adjoint of `Tiles.windows` and a transform: a pixel of (..., extent, R) is the sum of its values in tiles.

    A tile's first m pixels are written, its others are added to those of the next tile. Unless these tiles are the last
    on the axis, the pixels of the tile after them must be there already.
    """
    m, (*others, number, _, run) = tiles.m, values.shape
    inside, beyond = tiles.outputs(pixels), pixels[..., tiles.stop : tiles.stop + SHARED, :]
    matmul(adjoint[:m], values, out=inside)
    shared = workspace.scratch("winograd", "shared pixels", (*others, number, SHARED, run))
    matmul(adjoint[m:], values, out=shared)
    inside[..., 1:, :SHARED, :] += shared[..., :-1, :, :]
    if last:
        beyond[...] = shared[..., -1, :, :]
    else:
        beyond += shared[..., -1, :, :]


def along_both(down: Array, across: Array, source: Array, half: Array, out: Array) -> None:
    """out (p, q, ...) = down (p, k) and across (q, l) applied along the first two axes of source (k, l, ...).

    half is (p, l, ...).
    """
    matmul(down, source.reshape(len(source), -1), out=half.reshape(len(half), -1))
    matmul(across, half.reshape(*half.shape[:2], -1), out=out.reshape(*out.shape[:2], -1))
