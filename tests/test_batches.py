"""dptrain.data.batches: every sample once an epoch, in an order that nothing but (seed, epoch, shard) decides."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dptrain.data.augment import flip_and_crop
from dptrain.data.batches import AUGMENTATION, ORDER, Normalisation, ShardBatches, random_words
from dptrain.data.format import Manifest, Samples, Source
from dptrain.nn.workspace import Workspace

SHAPE = (2, 6, 7)
MEAN, STD = (0.4734, 0.1), (0.2516, 0.003)
MANIFEST = Manifest(
    name="random",
    classes=("a", "b"),
    image_shape=SHAPE,
    mean=MEAN,
    std=STD,
    seed=0,
    source=Source("random", None, None, None),
    splits={"train": (), "test": ()},
)
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


def expected_words(seed: int, epoch: int, shard: int, purpose: int, count: int) -> NDArray[np.uint64]:
    """Philox blocks of counters 1, 2, ...: NumPy counts on before it draws."""
    key = seed, epoch * 2**32 + shard * 2**8 + purpose
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
    shard=st.integers(0, 2**24 - 1),
    purpose=st.sampled_from([ORDER, AUGMENTATION]),
    count=st.integers(0, 21),
)
def test_random_words_are_philox_keyed_by_seed_epoch_shard_and_purpose(
    seed: int, epoch: int, shard: int, purpose: int, count: int
) -> None:
    words = random_words(seed, epoch, shard, purpose, count)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words, expected_words(seed, epoch, shard, purpose, count))


def shard_samples(count: int) -> Samples:
    """Random images; the label of a sample is its row, so that a batch tells which samples it holds."""
    images = np.random.default_rng(count).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return Samples(images, np.arange(count), np.arange(count) * 10)


def batches(count: int = 23, *, shard: int = 0, size: int = 4, seed: int = 0, augment: str = "none") -> ShardBatches:
    return ShardBatches(shard_samples(count), shard, MANIFEST, size=size, seed=seed, augment=augment)


def order(source: ShardBatches, epoch: int) -> list[int]:
    """Rows of the samples of an epoch in the order they come."""
    steps = -(-len(source.samples) // source.size)
    return [int(row) for step in range(steps) for row in source.batch(epoch, step, Workspace())[1]]


@given(count=st.integers(0, 40), size=st.integers(1, 12), epoch=st.integers(0, 3))
def test_every_sample_comes_once_an_epoch_and_only_the_last_batches_are_smaller(
    count: int, size: int, epoch: int
) -> None:
    source = batches(count, size=size)
    assert sorted(order(source, epoch)) == list(range(count))
    for step in range(-(-count // size) + 2):
        images, labels = source.batch(epoch, step, Workspace())
        expected = min(size, max(0, count - step * size))
        assert images.shape == (*SHAPE, expected)
        assert labels.shape == (expected,)
        assert images.dtype == np.float32
        assert labels.dtype == np.int64


@pytest.mark.parametrize("augment", ["none", "reflect", "zero"])
def test_empty_batch_of_a_shard_that_has_run_out_is_a_batch(augment: str) -> None:
    images, labels = batches(8, size=4, augment=augment).batch(0, 2, Workspace())
    assert images.shape == (*SHAPE, 0)
    assert labels.shape == (0,)


def test_order_is_that_of_the_random_words() -> None:
    for seed, epoch, shard in ((0, 0, 0), (3, 1, 2)):
        expected = np.argsort(expected_words(seed, epoch, shard, 0, 23), kind="stable")
        assert order(batches(seed=seed, shard=shard), epoch) == expected.tolist()


def test_order_differs_between_seeds_epochs_and_shards() -> None:
    orders = {
        tuple(order(batches(seed=seed, shard=shard), epoch)) for seed, epoch, shard in product(range(3), repeat=3)
    }
    assert len(orders) == 27
    assert tuple(range(23)) not in orders


def test_order_does_not_depend_on_the_size_of_batches() -> None:
    assert order(batches(size=4), 5) == order(batches(size=7), 5) == order(batches(size=23), 5)


def test_samples_of_a_batch_are_those_of_its_labels_normalised() -> None:
    source = batches()
    for step in range(6):
        images, labels = source.batch(1, step, Workspace())
        np.testing.assert_array_equal(images, source.normalise(source.samples.images[labels], Workspace()))


@pytest.mark.parametrize("augment", ["reflect", "zero"])
def test_augmentation_goes_with_the_position_in_the_epoch(augment: str) -> None:
    source = batches(augment=augment, seed=4, shard=2)
    words = expected_words(4, 3, 2, 1, 23)
    for step in (0, 2, 5):
        images, labels = source.batch(3, step, Workspace())
        moved = flip_and_crop(source.samples.images[labels], words[step * 4 : (step + 1) * 4], augment)
        np.testing.assert_array_equal(images, source.normalise(moved, Workspace()))


@settings(max_examples=30)
@given(
    visits=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=12),
    augment=st.sampled_from(["none", "reflect", "zero"]),
)
def test_batch_does_not_depend_on_what_was_asked_before(visits: list[tuple[int, int]], augment: str) -> None:
    used, workspace = batches(augment=augment), Workspace()
    for epoch, step in visits:
        images, labels = used.batch(epoch, step, workspace)
        fresh_images, fresh_labels = batches(augment=augment).batch(epoch, step, Workspace())
        np.testing.assert_array_equal(images, fresh_images)
        np.testing.assert_array_equal(labels, fresh_labels)


def test_batches_leave_the_samples_as_they_were() -> None:
    source = batches(augment="zero")
    order(source, 0)
    np.testing.assert_array_equal(source.samples.images, shard_samples(23).images)


def test_normalisation_is_exact_to_single_precision_for_every_pixel_value() -> None:
    """All 256 values in both channels against float64, with the batch axis last."""
    images = np.arange(256, dtype=np.uint8)[:, None, None, None] ^ np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    found = Normalisation(MANIFEST)(images, Workspace())
    expected = np.empty((2, 3, 5, 256))
    for channel in range(2):
        pixels = images[:, channel].astype(np.float64).transpose(1, 2, 0)
        expected[channel] = (pixels / 255 - MEAN[channel]) / STD[channel]
    assert found.dtype == np.float32
    # Two roundings of each of the two terms, whose size is at most the larger of them at the ends of the range.
    bound = 4 * np.finfo(np.float32).eps * np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(found - expected) <= bound).all()
