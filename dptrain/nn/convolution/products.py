"""Matrix products, cut into blocks of the size that OpenBLAS multiplies fastest.

For products of at most SMALL multiplications OpenBLAS has kernels for AVX-512 that read the factors in place. For
larger ones it first copies both, which for a short axis costs as much as the product: there blocks run up to twice as
fast. Its other kernels get whole products: with blocks the passes of a convolution took up to 24 % longer (AVX2). The
blocks depend on shapes and on the kernels alone, so the bits do too.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from dptrain.arrays.memory import Array, Workspace
from dptrain.system.blas import kernels

SMALL = 100**3  # OpenBLAS: kernel/x86_64/sgemm_small_kernel_permit_skylakex.c
LEAST = SMALL // 16  # multiplications; below it the calls cost more than they save
LEAST_BLOCK = 16  # rows or columns: one vector register
WITH_SMALL_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}  # OpenBLAS's names of its kernels for AVX-512


@cache
def has_small_kernels() -> bool:
    """Whether the BLAS that NumPy uses multiplies small matrices in place."""
    return not kernels().isdisjoint(WITH_SMALL_KERNELS)


def matmul(a: Array, b: Array, out: Array) -> None:
    """out (..., M, L) = a (..., M, I) @ b (..., I, L), stacks of matrices as np.matmul takes them."""
    rows, columns, inner = *out.shape[-2:], a.shape[-1]
    block = _block_extent(inner * min(rows, columns), max(rows, columns)) if rows * columns * inner > SMALL else 0
    if block == 0 or not has_small_kernels():
        np.matmul(a, b, out=out)
    elif columns >= rows:
        np.matmul(a[..., None, :, :], _cut_columns(b, block), out=_cut_columns(out, block))
    else:
        np.matmul(_cut_rows(a, block), b[..., None, :, :], out=_cut_rows(out, block))


def matmul_of_long(a: Array, b: Array, out: Array, name: str, workspace: Workspace) -> None:
    """out (M, I) = a (M, L) @ b (L, I) for a large L: the sum over blocks of it."""
    block = _block_extent(out.size, a.shape[1])
    if out.size * a.shape[1] <= SMALL or block == 0 or not has_small_kernels():
        np.matmul(a, b, out=out)
    else:
        products = workspace.scratch(name, "blocks' products", (a.shape[1] // block, *out.shape))
        np.matmul(_cut_columns(a, block), _cut_rows(b, block), out=products)
        products.sum(axis=0, out=out)


@cache
def _block_extent(others: int, extent: int) -> int:
    """The largest power of two that divides `extent` and keeps a block's product small; 0 if none is worth a call.

    `others` is the product of the two extents that are not cut.
    """
    most = max(1, SMALL // others)
    block = math.gcd(extent, 1 << most.bit_length() >> 1)
    return block if block >= LEAST_BLOCK and block * others >= LEAST else 0


def _cut_columns(matrices: Array, block: int) -> Array:
    """(..., M, L) as a view (..., L / block, M, block)."""
    return matrices.reshape(*matrices.shape[:-1], -1, block).swapaxes(-2, -3)


def _cut_rows(matrices: Array, block: int) -> Array:
    """(..., M, L) as a view (..., M / block, block, L)."""
    return matrices.reshape(*matrices.shape[:-2], -1, block, matrices.shape[-1])
