"""dptrain.arrays.random: Philox by its definition and its published answers, one key for each use of random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dptrain.arrays.random import Purpose, random_words

WORD = 2**64


def philox4x64(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Ten rounds of Philox on four 64-bit words, in Python's integers (Salmon et al. 2011, section 3.3)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = high // WORD ^ c1 ^ k0, high % WORD, low // WORD ^ c3 ^ k1, low % WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % WORD, (k1 + 0xBB67AE8584CAA73B) % WORD
    return c0, c1, c2, c3


def expected_words(seed: int, purpose: int, epoch: int, number: int, count: int) -> NDArray[np.uint64]:
    """Philox blocks of counters 1, 2, ...: NumPy increments its counter before it draws."""
    key = seed, purpose * 2**56 + epoch * 2**24 + number
    blocks = [philox4x64((number, 0, 0, 0), key) for number in range(1, count // 4 + 2)]
    return np.array(blocks, np.uint64).ravel()[:count]


def words_of(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff",
            "ffffffffffffffff ffffffffffffffff",
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
        (
            "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
            "452821e638d01377 be5466cf34e90c6c",
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_philox_of_this_file_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    """The known answers for philox4x64 with 10 rounds in Random123's kat_vectors."""
    assert philox4x64(words_of(counter), words_of(key)) == words_of(answer)


@given(
    seed=st.integers(0, WORD - 1),
    epoch=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**24 - 1),
    purpose=st.sampled_from(Purpose),
    count=st.integers(0, 21),
)
def test_words_are_philox_keyed_by_seed_purpose_epoch_and_number(
    seed: int, epoch: int, number: int, purpose: Purpose, count: int
) -> None:
    words = random_words(seed, purpose, number, count, epoch=epoch)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words, expected_words(seed, purpose, epoch, number, count))


def test_no_purpose_has_the_number_of_data_prep() -> None:
    assert 0 not in [int(purpose) for purpose in Purpose]
    assert len({int(purpose) for purpose in Purpose}) == len(Purpose)
