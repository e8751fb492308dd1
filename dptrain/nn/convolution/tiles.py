"""The transforms of Winograd's minimal filtering, and the tiles that cover an axis of a feature map.

Tiles of one or two sizes cover an axis: 15 = 5+5+5, 7 = 4+3. Where it costs less, tiles reach beyond: 7 = 4+4-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.arrays.memory import Array

KERNEL = 3
SHARED = KERNEL - 1  # pixels that a tile has in common with the next one

# For m outputs, m + 1 points; infinity is one more. These are the binary fractions with the smallest rounding errors
# (Barabasz et al. 2018 and Alam et al. 2022 explain why). Other points give other bits: then change `FAMILY` too.
POINTS = {
    2: (0, 1, -1),
    3: (3 / 8, -3 / 8, 5 / 4, -5 / 4),
    4: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2),
    5: (1 / 4, -1 / 4, 7 / 8, -7 / 8, 7 / 4, -7 / 4),
    6: (0, 1 / 2, -1 / 2, 1, -1, 2, -2),
}
FAMILY = "winograd"  # the algorithm's name in checkpoints begins with it


@cache
def transforms(m: int) -> tuple[Array, Array, Array]:
    """A' (m, n), G (n, 3) and B' (n, n) in float64, from n - 1 interpolation points and the point at infinity.

    Toom and Cook multiply two polynomials with coefficients g (3) and y (m) by evaluating both at n points, multiplying
    the values, and interpolating. With E_k the evaluation of k coefficients and L the interpolation, the product is
    s = L [(E_3 g) * (E_m y)]. Filtering is its transpose (Winograd 1980): y = E_m' [(E_3 g) * (L' d)]. A point's factor
    is moved from L to E_3, so that A' and B' hold binary fractions, which are exact in float32. Most of G is rounded.
    """
    points = POINTS[m]
    n = m + SHARED
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


class Tiles(NamedTuple):
    """Equal tiles side by side along one axis: `number` of m outputs, the first one at output `start`."""

    m: int
    number: int
    start: int

    @property
    def n(self) -> int:
        """Pixels that a tile reads."""
        return self.m + SHARED

    @property
    def stop(self) -> int:
        return self.start + self.m * self.number

    def windows(self, pixels: Array) -> Array:
        """The pixels (..., extent, R) that the tiles read, as a view (..., number, n, R)."""
        *others, step, within = pixels.strides
        shape = (*pixels.shape[:-2], self.number, self.n, pixels.shape[-1])
        first = pixels[..., self.start : self.stop + SHARED, :]
        return as_strided(first, shape, (*others, self.m * step, step, within))

    def outputs(self, image: Array) -> Array:
        """The part of image (..., extent, R) that the tiles cover, as a view (..., number, m, R)."""
        *others, _, run = image.shape
        return image[..., self.start : self.stop, :].reshape(*others, self.number, self.m, run)


Tiling = tuple[Tiles, ...]  # all tiles of one axis, the larger ones first


def tilings(extent: int, q: int, largest: int) -> Iterator[Tiling]:
    """The ways to cover an extent, a multiple of q, by tiles of at most `largest` outputs.

    Tiles of two sizes cover it exactly. Tiles of one size may reach beyond it, up to another multiple of q.
    """
    for m in range(2, largest + 1):
        number = -(-extent // m)
        if number * m == extent or number * m % q == 0:
            yield (Tiles(m, number, 0),)
        for smaller in range(2, m):
            # More of the smaller tiles than this could be replaced by larger ones.
            for count in range(1, m // math.gcd(m, smaller)):
                large, rest = divmod(extent - count * smaller, m)
                if large > 0 and rest == 0:
                    yield (Tiles(m, large, 0), Tiles(smaller, count, large * m))
