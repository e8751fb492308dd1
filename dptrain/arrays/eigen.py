"""Eigenvectors of a symmetric matrix, with the same bits on every CPU: no LAPACK, only +, -, *, / and square roots."""

from __future__ import annotations

import math

import numpy as np

from dptrain.arrays.memory import Array

SWEEPS = 50  # far more than needed: 6 to 10 are usual


def symmetric_eigenvectors(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues (n,), ascending, and eigenvectors, the rows of (n, n), of a symmetric matrix (n, n), in float64.

    The component of a vector with the largest magnitude is positive. Cyclic Jacobi rotations (Golub and Van Loan,
    Matrix Computations, 8.5) until all elements off the diagonal are negligible.
    """
    a = np.array(matrix, np.float64)
    n = len(a)
    vectors, negligible = np.eye(n), 1e-20 * abs(a).max()
    pairs = [(p, q) for p in range(n - 1) for q in range(p + 1, n)]
    for _ in range(SWEEPS):
        rotated = False
        for p, q in pairs:
            if abs(a[p, q]) > negligible:
                _rotate(a, vectors, p, q)
                rotated = True
        if not rotated:
            break
    order = np.argsort(a.diagonal(), kind="stable")
    vectors = vectors[order]
    largest = abs(vectors).argmax(axis=1)
    vectors *= np.sign(vectors[range(n), largest])[:, None]
    return a.diagonal()[order], vectors


def _rotate(a: Array, vectors: Array, p: int, q: int) -> None:
    """Make a[p, q] zero by a rotation J: a becomes J' a J, in place, and the vectors J' vectors."""
    tau = (float(a[q, q]) - float(a[p, p])) / (2 * float(a[p, q]))
    # The tangent of the angle: the smaller solution of t * t + 2 * tau * t - 1 = 0.
    t = math.copysign(1 / (abs(tau) + math.sqrt(1 + tau * tau)), tau)
    c = 1 / math.sqrt(1 + t * t)
    s = t * c
    for rows in (a, a.T, vectors):
        rows[p], rows[q] = c * rows[p] - s * rows[q], s * rows[p] + c * rows[q]
    a[p, q] = a[q, p] = 0.0
