import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.nn.convolution.tiles import POINTS, SHARED, Tiles, tilings, transforms


@pytest.mark.parametrize("m", POINTS)
def test_the_transforms_filter_exactly(m: int) -> None:
    """y[i] = sum of g[k] d[i + k] as an identity of bilinear forms, in exact arithmetic."""
    exact = [[[Fraction(value).limit_denominator(10**6) for value in row] for row in one] for one in transforms(m)]
    for matrix, fractions in zip(transforms(m), exact, strict=True):
        np.testing.assert_allclose(matrix, np.array(fractions, np.float64), rtol=1e-15)
    outputs, kernels, pixels = exact
    for i, k, j in itertools.product(range(m), range(3), range(m + 2)):
        coefficient = sum(outputs[i][f] * kernels[f][k] * pixels[f][j] for f in range(m + 2))
        assert coefficient == (j == i + k)


@pytest.mark.parametrize("m", POINTS)
def test_transforms_of_outputs_and_pixels_are_exact_in_float32(m: int) -> None:
    outputs, _, pixels = transforms(m)
    for matrix in (outputs, pixels):
        np.testing.assert_array_equal(matrix.astype(np.float32), matrix)


@given(windows=st.integers(1, 40), q=st.integers(1, 2), largest=st.integers(2, 6))
def test_every_tiling_covers_the_extent_and_whole_pooling_windows(windows: int, q: int, largest: int) -> None:
    extent = q * windows
    found = list(tilings(extent, q, largest))
    assert found
    assert len(set(found)) == len(found)
    for tiling in found:
        sizes = [tiles.m for tiles in tiling for _ in range(tiles.number)]
        assert sum(sizes) == extent or (len(set(sizes)) == 1 and extent < sum(sizes) < extent + sizes[0])
        assert sum(sizes) % q == 0
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) <= largest
        assert [tiles.start for tiles in tiling] == [0, *(tiles.stop for tiles in tiling[:-1])]


@pytest.mark.parametrize(
    ("extent", "expected"),
    [(1, {(2,)}), (3, {(3,), (2, 2)}), (7, {(3, 2, 2), (4, 3), (5, 2), (4, 4)}), (15, {(5, 5, 5), (4, 4, 4, 3)})],
)
def test_tiles_mix_two_sizes_or_reach_beyond_the_map(extent: int, expected: set[tuple[int, ...]]) -> None:
    found = {tuple(tiles.m for tiles in tiling for _ in range(tiles.number)) for tiling in tilings(extent, 1, 5)}
    assert expected <= found


def test_tiles_view_the_pixels_that_they_read_and_the_outputs_that_they_cover() -> None:
    line = np.arange(10)[:, None]
    tiles = Tiles(m=3, number=2, start=1)
    assert tiles.windows(line)[..., 0].tolist() == [[1, 2, 3, 4, 5], [4, 5, 6, 7, 8]]
    assert tiles.outputs(line)[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.shares_memory(tiles.windows(line), line)
    assert (tiles.n, tiles.stop) == (3 + SHARED, 7)
