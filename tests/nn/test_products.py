import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.arrays.memory import Workspace
from dptrain.nn.convolution import products


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 64, 96, 500, 1024, 8192]),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_in_blocks_equal_whole_products(
    rows: int, inner: int, columns: int, transposed: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(inner, rows)).T if transposed else generator.normal(size=(rows, inner))
    b = generator.normal(size=(inner, columns))
    out = np.full((rows, columns), np.nan)
    products.matmul(a, b, out)
    np.testing.assert_allclose(out, np.einsum("ik,kj->ij", a, b), rtol=1e-9, atol=1e-9)
    sideways = np.full((columns, rows), np.nan)
    products.matmul(b.T, a.T, sideways)
    np.testing.assert_allclose(sideways, np.einsum("kj,ik->ji", b, a), rtol=1e-9, atol=1e-9)
    other = generator.normal(size=(columns, rows))
    summed = np.full((inner, rows), np.nan)
    products.matmul_of_long(b, other, summed, "layer", Workspace(np.float64))
    np.testing.assert_allclose(summed, np.einsum("kj,ji->ki", b, other), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(96, 512), (512, 96)])
def test_stacks_of_matrices_are_cut_into_blocks_too(rows: int, columns: int) -> None:
    """The output array is not contiguous, as in Winograd's transforms."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(rows, 40)), generator.normal(size=(3, 2, 40, columns))
    out = np.full((rows, 3, 2, columns), np.nan)
    products.matmul(a, b, out.transpose(1, 2, 0, 3))
    np.testing.assert_allclose(out, np.einsum("ik,abkj->iabj", a, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("others", "extent", "block"),
    [(36 * 36, 4096, 512), (36 * 16, 8192, 1024), (128 * 256, 128, 16), (2_000_000, 64, 0), (36, 96, 0), (99, 9999, 0)],
)
def test_a_block_divides_the_extent_and_its_product_is_small(others: int, extent: int, block: int) -> None:
    assert products._block_extent(others, extent) == block
    if block:
        assert extent % block == 0
        assert others * block <= products.SMALL
