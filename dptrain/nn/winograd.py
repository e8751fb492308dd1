"""Winograd's minimal filtering: a 3x3 convolution of stride 1 with fewer multiplications (Lavin and Gray 2015).

An m x m tile of the output depends on n x n pixels of the input, n = m + 2. In one dimension, with g the kernel
and d the pixels, F(m, 3) is

    y = A' [(G g) * (B' d)]           "*" element by element: n multiplications instead of 3 m

and in two dimensions the same along both axes. All three transforms are linear: the sum over channels is taken
between them, as n * n matrix products, and each gradient is computed by the adjoints of the same transforms.

    d[f, c, t, n]   pixels of tile t, f counts the n x n places     V = (B' x B') d
    w[o, c, 9]      the kernels                                     U = (G x G) w
    M[f] = U[f] @ V[f]                                              Y = (A' x A') M, the m x m outputs

"x" is the Kronecker product, so each transform is one matrix product for all tiles, channels and samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from dptrain.nn.correlation import Correlation, Geometry
from dptrain.nn.products import matmul
from dptrain.nn.workspace import Array, Workspace

KERNEL = 3
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 2, -2)}  # and infinity; small, so that little is lost to rounding


def transforms(m: int) -> tuple[Array, Array, Array]:
    """A' (m, n), G (n, 3) and B' (n, n) in float64, from n - 1 interpolation points and the point at infinity.

    The product of two polynomials with coefficients g (3) and y (m) is found by evaluating both at n points,
    multiplying the values, and interpolating (Toom and Cook). With E_k the evaluation of k coefficients and L the
    interpolation, s = L [(E_3 g) * (E_m y)]. Filtering is the transposed of that product (Winograd 1980):
    y = E_m' [(E_3 g) * (L' d)]. A point's factor is moved from L to E_3, so that A' and B' hold integers, which
    float32 represents exactly.
    """
    points = POINTS[m]
    n = m + KERNEL - 1
    evaluate = np.zeros((n, n))
    evaluate[:-1] = np.vander(points, n, increasing=True)
    evaluate[-1, -1] = 1  # at infinity a polynomial is its highest coefficient
    evaluate_kernel, evaluate_tile = evaluate[:, :KERNEL].copy(), evaluate[:, :m].copy()
    evaluate_kernel[-1], evaluate_tile[-1] = np.eye(KERNEL)[-1], np.eye(m)[-1]
    interpolate = np.zeros((n, n))  # row i: coefficients of the polynomial that is not 0 at point i alone
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        interpolate[i, :-1] = np.poly(others)[::-1]
        evaluate_kernel[i] /= np.prod([point - other for other in others])
    interpolate[-1] = np.poly(points)[::-1]
    return evaluate_tile.T, evaluate_kernel, interpolate


class Winograd(Correlation):
    """Kernels 3x3 with stride 1, any padding and size; tiles of m x m outputs, m even.

    An output whose size is no multiple of m is computed up to the next one.
    """

    def __init__(self, geometry: Geometry, name: str, q: int, m: int) -> None:
        super().__init__(geometry, name, q)
        self.m, self.n = m, m + KERNEL - 1
        _, height, width = geometry.output_shape
        self.tiles = (-(-height // m), -(-width // m))
        self.extent = (m * self.tiles[0], m * self.tiles[1])
        to_outputs, of_kernels, of_pixels = (np.kron(matrix, matrix) for matrix in transforms(m))
        # In column order: OpenBLAS multiplies by a square transform faster so.
        self._matrices = (to_outputs, of_kernels, np.asfortranarray(of_pixels), np.asfortranarray(of_pixels.T))
        self._float32 = tuple(matrix.astype(np.float32) for matrix in self._matrices)

    def prepare(self, weight: Array, workspace: Workspace) -> Array:
        """The transformed kernels (n * n, O, C)."""
        _, of_kernels, _, _ = self._transforms(workspace.dtype)
        u = workspace.array(self.name, "kernels transformed", (self.n**2, *weight.shape[:2]))
        places_first = workspace.array(self.name, "kernels", (KERNEL**2, weight.size // KERNEL**2))
        np.copyto(places_first, weight.reshape(-1, KERNEL**2).T)
        matmul(of_kernels, places_first, out=u.reshape(len(u), -1))
        return u

    def forward(self, x: Array, kernels: Array, workspace: Workspace) -> tuple[Array, tuple[Array, Array]]:
        (_, out_channels, channels), samples = kernels.shape, x.shape[-1]
        to_outputs, _, of_pixels, _ = self._transforms(workspace.dtype)
        tiles = (*self.tiles, samples)
        d = workspace.scratch(self.name, "pixels", (self.n**2, channels, *tiles))
        phases = self.pad(x, 1, self._padded_extent(), workspace)
        d.reshape(self.n, self.n, *d.shape[1:])[...] = workspace.views(self.name, "tiles", phases, self._tiles)
        v = workspace.array(self.name, "pixels transformed", d.shape)
        matmul(of_pixels, d.reshape(len(d), -1), out=v.reshape(len(v), -1))
        products = workspace.scratch(self.name, "products", (self.n**2, out_channels, *tiles))
        np.matmul(kernels, v.reshape(*v.shape[:2], -1), out=products.reshape(*products.shape[:2], -1))
        sums = workspace.scratch(self.name, "sums", (self.m**2, out_channels, *tiles))
        matmul(to_outputs, products.reshape(len(products), -1), out=sums.reshape(len(sums), -1))
        return self._in_windows(sums), (d, v)

    def backward(
        self, dsums: Array, saved: Any, kernels: Array, dweight: Array, workspace: Workspace, need_dx: bool
    ) -> Array | None:
        d, v = saved
        out_channels, *tiles, samples = dsums.shape[-4:]
        to_outputs, of_kernels, _, of_pixels_adjoint = self._transforms(workspace.dtype)
        dy = workspace.scratch(self.name, "sums", (self.m**2, out_channels, *tiles, samples))  # what dsums shows
        dproducts = workspace.scratch(self.name, "products", (self.n**2, out_channels, *tiles, samples))
        matmul(to_outputs.T, dy.reshape(len(dy), -1), out=dproducts.reshape(len(dproducts), -1))
        dproducts = dproducts.reshape(*dproducts.shape[:2], -1)
        flat_v = v.reshape(*v.shape[:2], -1)
        du = workspace.array(self.name, "dkernels transformed", kernels.shape)
        np.matmul(dproducts, flat_v.transpose(0, 2, 1), out=du)
        np.matmul(du.reshape(len(du), -1).T, of_kernels, out=dweight.reshape(-1, KERNEL**2))
        if not need_dx:
            return None
        # Pixels and their transforms have served: their memory takes the gradients.
        np.matmul(kernels.transpose(0, 2, 1), dproducts, out=flat_v)
        matmul(of_pixels_adjoint, v.reshape(len(v), -1), out=d.reshape(len(d), -1))
        dpadded = workspace.array(self.name, "dpadded", (d.shape[1], *self._padded_extent(), samples))
        self._scatter(d, dpadded, workspace)
        (ph, pw), (_, height, width) = self.geometry.padding, self.geometry.input_shape
        return dpadded[:, ph : ph + height, pw : pw + width]

    def in_own_order(self, image: Array) -> Array:
        (down, across), a = self.tiles, self.m // self.q
        return image.reshape(len(image), down, a, across, a, -1).transpose(2, 4, 0, 1, 3, 5)

    def _in_windows(self, sums: Array) -> Array:
        """sums (m * m, O, tiles, N) as a view (q, q, m / q, m / q, O, tiles, N)."""
        a = self.m // self.q
        return sums.reshape(a, self.q, a, self.q, *sums.shape[1:]).transpose(1, 3, 0, 2, *range(4, 8))

    def _padded_extent(self) -> tuple[int, int]:
        """Of the input with its padding and whatever else the last tiles see, in whole tiles."""
        return self.extent[0] + self.m, self.extent[1] + self.m

    def _tiles(self, phases: Array) -> Array:
        """Every tile's pixels, of which neighbours share two rows or columns: a view (n, n, C, tiles, N)."""
        tiles = sliding_window_view(phases[0, 0], (self.n, self.n), axis=(1, 2))[:, :: self.m, :: self.m]
        return tiles.transpose(4, 5, 0, 1, 2, 3)

    def _scatter(self, d: Array, padded: Array, workspace: Workspace) -> None:
        """The adjoint of `_tiles`: the sum, for each pixel, of what the tiles have for it."""
        padded[:, self.extent[0] :] = 0
        padded[:, :, self.extent[1] :] = 0
        (tile, pixels), *shared = workspace.views(self.name, "scattered", padded, partial(self._parts, d))
        pixels[...] = tile
        for tile, pixels in shared:
            pixels += tile

    def _parts(self, d: Array, padded: Array) -> list[tuple[Array, Array]]:
        """What tiles see of the m x m pixels that are their own, and of their right, lower and diagonal neighbours'.

        Pairs of views (n or 2, n or 2, C, tiles, N): the part of d, and the pixels it comes from. No pixel is in a
        view twice.
        """
        m, (down, across) = self.m, self.tiles
        d = d.reshape(self.n, self.n, *d.shape[1:])
        pixels = padded.reshape(len(padded), down + 1, m, across + 1, m, -1).transpose(2, 4, 0, 1, 3, 5)
        own, shared = slice(0, m), slice(m, self.n)
        ways = ((own, own, 0), (shared, slice(0, 2), 1))  # places in the tile, in the neighbour, and how far it is
        return [
            (d[i, j], pixels[pixel_i, pixel_j, :, a : a + down, b : b + across])
            for i, pixel_i, a in ways
            for j, pixel_j, b in ways
        ]

    def _transforms(self, dtype: DTypeLike) -> tuple[Array, ...]:
        """A' x A', G x G, B' x B' and the adjoint of that."""
        return self._float32 if dtype == np.float32 else self._matrices
