"""Matrix products of few rows and very many columns, cut into blocks.

For products of at most SMALL multiplications OpenBLAS has kernels that read the factors where they lie; for larger
ones it first copies both into its own order, which for so few rows costs as much as the product. With AVX-512
the blocks run up to twice as fast; with AVX2, where those kernels are missing, up to 5 % slower.

The blocks depend on shapes alone, so the bits do too.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from dptrain.nn.workspace import Array, Workspace

SMALL = 100**3  # OpenBLAS: kernel/x86_64/sgemm_small_kernel_permit_skylakex.c
LEAST_BLOCK = 64  # columns; below it the calls outweigh what they save


def matmul(a: Array, b: Array, out: Array) -> None:
    """out (M, L) = a (M, K) @ b (K, L)."""
    block = _block(a.shape[0] * a.shape[1], b.shape[1])
    if block < LEAST_BLOCK:
        np.matmul(a, b, out=out)
    else:
        np.matmul(a, _cut(b, block).transpose(1, 0, 2), out=_cut(out, block).transpose(1, 0, 2))


def matmul_transposed(a: Array, b: Array, out: Array, name: str, workspace: Workspace) -> None:
    """out (M, K) = a (M, L) @ b (K, L)', the sum over blocks."""
    block = _block(out.size, a.shape[1])
    if block < LEAST_BLOCK or block == a.shape[1]:
        np.matmul(a, b.T, out=out)
    else:
        products = workspace.scratch(name, "blocks' products", (a.shape[1] // block, *out.shape))
        np.matmul(_cut(a, block).transpose(1, 0, 2), _cut(b, block).transpose(1, 2, 0), out=products)
        products.sum(axis=0, out=out)


@cache
def _block(rows_and_sum: int, columns: int) -> int:
    """The largest power of two that divides the columns and keeps a block's product small."""
    most = max(1, SMALL // rows_and_sum)
    return math.gcd(columns, 1 << most.bit_length() >> 1)


def _cut(matrix: Array, block: int) -> Array:
    """A view (rows, blocks, block)."""
    return matrix.reshape(len(matrix), -1, block)
