from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from dptrain.arrays.memory import Array, Workspace
from dptrain.nn.convolution import products

DETECT = products.has_small_kernels.__wrapped__  # before any test replaces it, and not cached


@pytest.fixture(autouse=True, scope="module")
def small_kernels() -> Iterator[None]:
    """Products are cut as with OpenBLAS's kernels for AVX-512, on every CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "has_small_kernels", lambda: True)
        yield


@examples(40)
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


@pytest.mark.parametrize("cut", [True, False])
def test_products_are_cut_only_for_kernels_that_multiply_small_matrices_in_place(
    cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def matmul(a: Array, b: Array, out: Array) -> None:
        shapes.append(out.shape)
        np.einsum("...ik,...kj->...ij", a, b, out=out)

    monkeypatch.setattr(products, "has_small_kernels", lambda: cut)
    monkeypatch.setattr(np, "matmul", matmul)
    products.matmul(np.ones((128, 256)), np.ones((256, 256)), np.empty((128, 256)))
    long, workspace = np.ones((36, 8192)), Workspace(np.float64)
    products.matmul_of_long(long, np.ones((8192, 32)), np.empty((36, 32)), "layer", workspace)
    assert shapes == ([(16, 128, 16), (16, 36, 32)] if cut else [(128, 256), (36, 32)])


@pytest.mark.parametrize(("core", "small"), [("SkylakeX", True), ("Haswell", False), ("Zen", False)])
def test_small_kernels_are_recognised_by_name(core: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "kernels", lambda: {core})
    assert DETECT() == small
