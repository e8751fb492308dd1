import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.nn import products
from dptrain.nn.workspace import Workspace


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 64, 96, 500, 1024, 8192]),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_in_blocks_are_products(rows, inner, columns, transposed, seed) -> None:
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(inner, rows)).T if transposed else generator.normal(size=(rows, inner))
    b = generator.normal(size=(inner, columns))
    out = np.full((rows, columns), np.nan)
    products.matmul(a, b, out)
    np.testing.assert_allclose(out, np.einsum("ik,kj->ij", a, b), rtol=1e-9, atol=1e-9)
    other = generator.normal(size=(rows, columns))
    summed = np.full((rows, inner), np.nan)
    products.matmul_transposed(other, b, summed, "layer", Workspace(np.float64))
    np.testing.assert_allclose(summed, np.einsum("ij,kj->ik", other, b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("rows_and_sum", "columns", "block"),
    [(36 * 36, 4096, 512), (36 * 16, 8192, 1024), (64 * 288, 2048, 32), (2_000_000, 64, 1), (36, 96, 32)],
)
def test_a_block_divides_the_columns_and_its_product_is_small(rows_and_sum: int, columns: int, block: int) -> None:
    assert products._block(rows_and_sum, columns) == block
    assert columns % block == 0
    assert block == 1 or rows_and_sum * block <= products.SMALL
