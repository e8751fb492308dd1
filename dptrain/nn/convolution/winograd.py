"""Winograd's minimal filtering: a 3x3 convolution of stride 1 with fewer multiplications (Lavin and Gray 2015).

An m x m tile of the output depends on n x n pixels of the input, n = m + 2. In one dimension, with g the kernel
and d the pixels, F(m, 3) is

    y = A' [(G g) * (B' d)]           "*" element by element: n multiplications instead of 3 m

and in two dimensions the same along both axes. All three transforms are linear: the sum over channels is taken
between them, as n * n matrix products, and each gradient is computed by the adjoints of the same transforms.

    d[i, j, t, N, c]    pixel (i, j) of the n x n that tile t reads    V = B' d B       along i and along j
    w[o, c, kh, kw]     the kernels                                    U = G w G'       along kh and along kw
    M[i, j] = V[i, j] @ U[i, j]                                        Y = A' M A       the m x m outputs

Each transform along one axis is a matrix product over everything else: all tiles, samples and channels. The transforms
of the pixels read the padded input in place, although its tiles overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution.correlation import Geometry, WholeMap
from dptrain.nn.convolution.products import matmul
from dptrain.nn.layer import Pass

KERNEL = 3
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 2, -2)}  # and infinity; small, for small rounding errors


def transforms(m: int) -> tuple[Array, Array, Array]:
    """A' (m, n), G (n, 3) and B' (n, n) in float64, from n - 1 interpolation points and the point at infinity.

    Toom and Cook multiply two polynomials with coefficients g (3) and y (m) by evaluating both at n points, multiplying
    the values, and interpolating. With E_k the evaluation of k coefficients and L the interpolation, the product is
    s = L [(E_3 g) * (E_m y)]. Filtering is its transpose (Winograd 1980): y = E_m' [(E_3 g) * (L' d)]. A point's factor
    is moved from L to E_3, so that A' and B' hold integers, which are exact in float32.
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


class Winograd(WholeMap):
    """Kernels 3x3 with stride 1, any padding; tiles of m x m outputs, m even, up to the next multiple of m."""

    def __init__(self, geometry: Geometry, q: int, m: int) -> None:
        super().__init__(geometry, q)
        self.m, self.n = m, m + KERNEL - 1
        _, height, width = geometry.output_shape
        self.tiles = (-(-height // m), -(-width // m))
        self.extent = (m * self.tiles[0], m * self.tiles[1])
        self._padded = (self.extent[0] + KERNEL - 1, self.extent[1] + KERNEL - 1)  # what all tiles see
        (ph, pw), (_, height, width) = geometry.padding, geometry.input_shape
        self._inside = (slice(ph, ph + height), slice(pw, pw + width))  # of the padding
        matrices = transforms(m)
        self._transforms = {kind: [one.astype(kind) for one in matrices] for kind in ("f", "d")}

    def prepare(self, weight: Array, workspace: Workspace) -> tuple[Array, Array]:
        """The transformed kernels: (n * n, C, O) for the forward pass and (n * n, O, C) for the backward pass."""
        _, of_kernels, _ = self._transforms[workspace.dtype.char]
        prepared = []
        for axes in ((2, 3, 1, 0), (2, 3, 0, 1)):
            source = weight.transpose(axes)
            places_first = workspace.scratch(self.name, "kernels", source.shape)
            np.copyto(places_first, source)
            half = workspace.scratch(self.name, "half of kernels", (self.n, KERNEL, *source.shape[2:]))
            u = workspace.array(self.name, f"kernels transformed {axes}", (self.n, self.n, *source.shape[2:]))
            along_both(of_kernels, places_first, half, u)
            prepared.append(u.reshape(-1, *source.shape[2:]))
        return prepared[0], prepared[1]

    def forward(self, x: Array, kernels: tuple[Array, Array], workspace: Workspace) -> tuple[Array, Array]:
        m, n, out_channels = self.m, self.n, self.geometry.output_shape[0]
        to_outputs, _, of_pixels = self._transforms[workspace.dtype.char]
        v = workspace.array(self.name, "pixels transformed", (n, n, *self.tiles, *x.shape[2:]))
        padded = workspace.array(self.name, "padded", (*self._padded, *v.shape[4:]), zeroed=True)
        padded[self._inside] = x  # the border stays zero
        between = workspace.scratch(self.name, "between axes", (n, self.tiles[0], *padded.shape[1:]))
        for pixels, tiles in workspace.views(self.name, "tiles", (padded, between, v), self._overlapping):
            matmul(of_pixels, pixels, out=tiles)
        products = workspace.scratch(self.name, "products", (n, n, *v.shape[2:5], out_channels))
        matmul(_by_place(v), kernels[0], out=_by_place(products))
        half = workspace.scratch(self.name, "half", (m, *products.shape[1:]))
        sums = workspace.scratch(self.name, "sums", (m, m, *products.shape[2:]))
        along_both(to_outputs, products, half, sums)
        a, q = m // self.q, self.q
        return sums.reshape(a, q, a, q, *sums.shape[2:]).transpose(1, 3, 0, 2, *range(4, 8)), v

    def backward(self, dsums: Array, v: Array, kernels: tuple[Array, Array], call: Pass) -> Array | None:
        workspace, dweight = call.workspace, call.gradients["weight"]
        m, n, (out_channels, channels) = self.m, self.n, dweight.shape[:2]
        to_outputs, of_kernels, of_pixels = self._transforms[workspace.dtype.char]
        shape = dsums.shape[4:]
        dy = workspace.scratch(self.name, "sums", (m, m, *shape))  # the memory that dsums views
        half = workspace.scratch(self.name, "half of dproducts", (n, m, *shape))
        dproducts = workspace.scratch(self.name, "products", (n, n, *shape))
        along_both(to_outputs.T, dy, half, dproducts)
        du = workspace.scratch(self.name, "dkernels transformed", (n, n, out_channels, channels))
        matmul(_by_place(dproducts).swapaxes(1, 2), _by_place(v), out=du.reshape(-1, out_channels, channels))
        half = workspace.scratch(self.name, "half of dkernels", (KERNEL, n, out_channels, channels))
        dkernels = workspace.scratch(self.name, "dkernels", (KERNEL, KERNEL, out_channels, channels))
        along_both(of_kernels.T, du, half, dkernels)
        np.copyto(dweight, dkernels.transpose(2, 3, 0, 1))
        if not call.need_dx:
            return None
        matmul(_by_place(dproducts), kernels[1], out=_by_place(v))  # v becomes its gradient
        dpadded = workspace.array(self.name, "dpadded", (*self._padded, *v.shape[4:]))
        between = workspace.scratch(self.name, "between axes", (n, self.tiles[0], *dpadded.shape[1:]))
        for pixels, tiles in reversed(self._axes(dpadded, between, v)):
            self._scatter(of_pixels.T, tiles, pixels, workspace)
        return dpadded[self._inside]

    def in_order_of_sums(self, image: Array) -> Array:
        (down, across), a = self.tiles, self.m // self.q
        return image.reshape(down, a, across, a, *image.shape[2:]).transpose(1, 3, 0, 2, 4, 5)

    def _axes(self, padded: Array, between: Array, v: Array) -> list[tuple[Array, Array]]:
        """Source (..., extent, R) and destination (..., tiles, n, R) of the vertical and the horizontal transform."""
        n, (down, across) = self.n, self.tiles
        return [
            (padded.reshape(len(padded), -1), between.reshape(n, down, -1).swapaxes(0, 1)),
            (between.reshape(*between.shape[:3], -1), v.reshape(n, n, down, across, -1).transpose(0, 2, 3, 1, 4)),
        ]

    def _overlapping(self, padded: Array, between: Array, v: Array) -> list[tuple[Array, Array]]:
        """The same with the sources as (..., tiles, n, R): neighbouring tiles share two pixels."""
        return [
            (sliding_window_view(pixels, self.n, axis=-2)[..., :: self.m, :, :].swapaxes(-1, -2), tiles)
            for pixels, tiles in self._axes(padded, between, v)
        ]

    def _scatter(self, adjoint: Array, tiles: Array, pixels: Array, workspace: Workspace) -> None:
        """The adjoint of a transform: each pixel of (..., extent, R) is the sum of its values in all tiles.

        A tile's first m pixels are written, its others are added to those of the next tile.
        """
        m, (*others, count, _, run) = self.m, tiles.shape
        matmul(adjoint[:m], tiles, out=pixels[..., : m * count, :].reshape(*others, count, m, run))
        shared = workspace.scratch(self.name, "shared pixels", (*others, count, KERNEL - 1, run))
        matmul(adjoint[m:], tiles, out=shared)
        pixels[..., m * count :, :] = shared[..., -1, :, :]
        following = pixels[..., m : m * count, :].reshape(*others, count - 1, m, run)
        following[..., : KERNEL - 1, :] += shared[..., :-1, :, :]


def _by_place(transformed: Array) -> Array:
    """(n, n, tiles, N, C) as n * n matrices (tiles * N, C)."""
    return transformed.reshape(len(transformed) ** 2, -1, transformed.shape[-1])


def along_both(matrix: Array, source: Array, half: Array, out: Array) -> None:
    """out (p, p, ...) = matrix (p, k) applied along the first two axes of source (k, k, ...); half is (p, k, ...)."""
    p, k = matrix.shape
    matmul(matrix, source.reshape(k, -1), out=half.reshape(p, -1))
    matmul(matrix, half.reshape(p, k, -1), out=out.reshape(p, p, -1))
