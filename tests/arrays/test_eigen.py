"""dptrain.arrays.eigen: eigenvectors that LAPACK confirms, with fixed order, signs and bits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection import examples

from dptrain.arrays.eigen import symmetric_eigenvectors
from dptrain.arrays.memory import Array


@examples(30)
@given(
    n=st.integers(1, 14),
    rank=st.integers(0, 14),
    scale=st.sampled_from([1e-150, 1e-3, 1.0, 1e150]),
    seed=st.integers(0, 99),
)
def test_the_vectors_are_those_of_lapack(n: int, rank: int, scale: float, seed: int) -> None:
    factor = np.random.default_rng(seed).normal(size=(n, rank))
    matrix = factor @ factor.T * scale
    values, vectors = symmetric_eigenvectors(matrix)
    largest = max(float(np.linalg.norm(matrix / scale, 2)), 1.0) * scale
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-13 * largest)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(vectors @ matrix, values[:, None] * vectors, atol=1e-12 * largest)
    assert (np.diff(values) >= 0).all()
    assert (vectors[range(n), abs(vectors).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 3)), np.ones((4, 4)), np.diag([3.0, 1.0, 2.0]), np.array([[0.0, 1.0], [1.0, 0.0]])]
)
def test_special_matrices(matrix: Array) -> None:
    values, vectors = symmetric_eigenvectors(matrix)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-15)
    np.testing.assert_allclose(vectors.T @ np.diag(values) @ vectors, matrix, atol=1e-15)


def test_every_cpu_gives_these_bits() -> None:
    rows = np.arange(12)
    matrix = (rows[:, None] * rows % 7 + (rows[:, None] + rows) ** 2 % 11 + 40 * np.eye(12)).astype(np.float64)
    values, vectors = symmetric_eigenvectors(matrix)
    digest = hashlib.sha256(values.tobytes() + vectors.tobytes()).hexdigest()[:12]
    assert digest == "b040b6e0ad85"
