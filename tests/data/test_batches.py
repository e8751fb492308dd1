"""dptrain.data.batches: every sample once an epoch, in an order that depends only on (seed, epoch, shard)."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from selection import examples

from dptrain.arrays.layout import array_shape
from dptrain.arrays.memory import Workspace
from dptrain.arrays.random import Purpose, random_words
from dptrain.data.augmentation import AugmentationConfig
from dptrain.data.batches import Normalisation, ShardBatches
from dptrain.data.manifest import Manifest, Provenance
from dptrain.data.shard import Samples
from dptrain.data.transforms import Images, make_transforms
from dptrain.data.transforms.crop import Crop
from dptrain.data.transforms.flip import Flip

SHAPE = (2, 6, 7)
MEAN, STD = (0.4734, 0.1), (0.2516, 0.003)
MANIFEST = Manifest(
    name="random",
    classes=("a", "b"),
    image_shape=SHAPE,
    mean=MEAN,
    std=STD,
    seed=0,
    source=Provenance("random"),
    splits={"train": (), "test": ()},
)


def shard_samples(count: int) -> Samples:
    """Random images; the label of a sample is its row, so that its batch shows which samples it has."""
    images = np.random.default_rng(count).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return Samples(images, np.arange(count), np.arange(count) * 10)


def batches(
    count: int = 23, *, shard: int = 0, size: int = 4, seed: int = 0, augment: str = "none", **more: Any
) -> ShardBatches:
    flip = augment != "none" or "alternating_flip" in more
    transforms = make_transforms(AugmentationConfig(crop=augment, flip=flip, **more), SHAPE, MEAN)
    return ShardBatches(shard_samples(count), shard, MANIFEST, size=size, seed=seed, transforms=transforms)


def flipped_and_cropped(
    images: Images, flip: NDArray[np.uint64], crop: NDArray[np.uint64], border: str, pixels: int = 4
) -> Images:
    return Crop(border, pixels)(Flip()(images, flip[:, None]), crop[:, None])


def order(source: ShardBatches, epoch: int) -> list[int]:
    """The rows of an epoch in the order of its batches."""
    steps = -(-len(source.samples) // source.size)
    return [int(row) for step in range(steps) for row in source.batch(epoch, step, Workspace())[1]]


@given(count=st.integers(0, 40), size=st.integers(1, 12), epoch=st.integers(0, 3))
def test_every_sample_occurs_once_per_epoch_and_only_the_last_batches_are_smaller(
    count: int, size: int, epoch: int
) -> None:
    source = batches(count, size=size)
    assert sorted(order(source, epoch)) == list(range(count))
    for step in range(-(-count // size) + 2):
        images, labels = source.batch(epoch, step, Workspace())
        expected = min(size, max(0, count - step * size))
        assert images.shape == array_shape(SHAPE, expected)
        assert labels.shape == (expected,)
        assert images.dtype == np.float32
        assert labels.dtype == np.int64


@pytest.mark.parametrize("augment", ["none", "reflect", "zero"])
def test_a_shard_without_further_samples_gives_an_empty_batch(augment: str) -> None:
    images, labels = batches(8, size=4, augment=augment, **EVERY).batch(0, 2, Workspace())
    assert images.shape == array_shape(SHAPE, 0)
    assert labels.shape == (0,)


def test_order_follows_from_the_random_words() -> None:
    for seed, epoch, shard in ((0, 0, 0), (3, 1, 2)):
        expected = np.argsort(random_words(seed, Purpose.SAMPLE_ORDER, shard, 23, epoch=epoch), kind="stable")
        assert order(batches(seed=seed, shard=shard), epoch) == expected.tolist()


def test_order_differs_between_seeds_epochs_and_shards() -> None:
    orders = {
        tuple(order(batches(seed=seed, shard=shard), epoch)) for seed, epoch, shard in product(range(3), repeat=3)
    }
    assert len(orders) == 27
    assert tuple(range(23)) not in orders


def test_order_does_not_depend_on_the_size_of_batches() -> None:
    assert order(batches(size=4), 5) == order(batches(size=7), 5) == order(batches(size=23), 5)


def test_samples_of_a_batch_are_normalised_and_belong_to_its_labels() -> None:
    source = batches()
    for step in range(6):
        images, labels = source.batch(1, step, Workspace())
        np.testing.assert_array_equal(images, source.normalise(shard_samples(23).images[labels], Workspace()))


@pytest.mark.parametrize("augment", ["reflect", "zero"])
def test_augmentation_depends_on_the_position_in_the_epoch(augment: str) -> None:
    source = batches(augment=augment, seed=4, shard=2)
    words = random_words(4, Purpose.AUGMENTATION, 2, 23, epoch=3)
    for step in (0, 2, 5):
        images, labels = source.batch(3, step, Workspace())
        bits = words[step * 4 : (step + 1) * 4]
        moved = flipped_and_cropped(shard_samples(23).images[labels], bits, bits, augment)
        np.testing.assert_array_equal(images, source.normalise(moved, Workspace()))


EVERY: dict[str, Any] = {"resized_crop": 0.3, "brightness": 0.5, "contrast": 0.5, "cutout": 3}


def test_every_transform_gets_the_words_of_its_positions() -> None:
    source = batches(augment="zero", seed=4, shard=2, crop_pixels=2, **EVERY)
    for step in (0, 2, 5):
        images, labels = source.batch(3, step, Workspace())
        expected = shard_samples(23).images[labels]
        for transform in source.transforms:
            words = random_words(4, transform.purpose, 2, 23 * transform.words, epoch=3).reshape(23, -1)
            expected = transform(expected, words[step * 4 : (step + 1) * 4])
        np.testing.assert_array_equal(images, source.normalise(expected, Workspace()))


def test_the_augmented_images_of_positions_are_those_of_the_batches() -> None:
    source = batches(augment="zero", alternating_flip=True, crop_pixels=2, **EVERY)
    positions = np.array([22, 0, 7, 7])
    images, rows = source.augmented(1, positions)
    np.testing.assert_array_equal(rows, source.order(1)[positions])
    for image, position in zip(images, positions.tolist(), strict=True):
        batch, _ = source.batch(1, position // 4, Workspace())
        np.testing.assert_array_equal(batch[:, :, position % 4], source.normalise(image[None], Workspace())[:, :, 0])


def test_a_transform_has_the_same_draws_with_and_without_others() -> None:
    """The square of cutout is at the same place, whatever happens to the image before."""
    places = []
    others: list[dict[str, Any]] = [{}, {"brightness": 0.5, "resized_crop": 0.3}]
    for more in others:
        plain, cut = (images_of(batches(seed=1, cutout=size, cutout_fill="0", **more), 2) for size in (0, 3))
        places.append({row: (cut[row] != plain[row]).any(axis=2) for row in cut})
    for row, square in places[0].items():
        assert square.sum() in (8, 9)  # a pixel may have been black before
        assert (square == places[1][row]).mean() > 0.9


@examples(30)
@given(
    visits=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=12),
    augment=st.sampled_from(["none", "reflect", "zero"]),
    more=st.sampled_from([{}, {"alternating_flip": True}, EVERY]),
)
def test_batch_does_not_depend_on_earlier_batches(
    visits: list[tuple[int, int]], augment: str, more: dict[str, Any]
) -> None:
    used, workspace = batches(augment=augment, **more), Workspace()
    for epoch, step in visits:
        images, labels = used.batch(epoch, step, workspace)
        fresh_images, fresh_labels = batches(augment=augment, **more).batch(epoch, step, Workspace())
        np.testing.assert_array_equal(images, fresh_images)
        np.testing.assert_array_equal(labels, fresh_labels)


def images_of(source: ShardBatches, epoch: int) -> dict[int, NDArray[np.float32]]:
    """The images (H, W, C) of an epoch, by the row of the sample."""
    steps = -(-len(source.samples) // source.size)
    found: dict[int, NDArray[np.float32]] = {}
    for step in range(steps):
        images, labels = source.batch(epoch, step, Workspace())
        found |= {int(row): images[:, :, number].copy() for number, row in enumerate(labels)}
    return found


def test_an_alternating_flip_is_drawn_once_and_inverted_in_every_other_epoch() -> None:
    source = batches(alternating_flip=True, seed=3, shard=1)
    words = random_words(3, Purpose.ALTERNATING_FLIP, 1, 23)
    plain = images_of(batches(seed=3, shard=1), 0)
    for epoch in (0, 1, 2, 5):
        for row, image in images_of(source, epoch).items():
            mirrored = (int(words[row]) ^ epoch) & 1
            np.testing.assert_array_equal(image, plain[row][:, ::-1] if mirrored else plain[row])
    assert 0 < (words & np.uint64(1)).sum() < 23


def test_crop_has_the_same_bits_with_an_alternating_flip() -> None:
    """Each is drawn from words of its own."""
    source = batches(augment="reflect", alternating_flip=True, crop_pixels=2)
    once = random_words(0, Purpose.ALTERNATING_FLIP, 0, 23)
    words = random_words(0, Purpose.AUGMENTATION, 0, 23, epoch=1)[:4]
    images, rows = source.batch(1, 0, Workspace())
    moved = flipped_and_cropped(shard_samples(23).images[rows], once[rows] ^ np.uint64(1), words, "reflect", 2)
    np.testing.assert_array_equal(images, source.normalise(moved, Workspace()))


def test_cutout_sets_a_square_to_the_mean() -> None:
    """To half a pixel value, 1/510 before normalisation."""
    source, whole = batches(cutout=3), batches()
    for row, image in images_of(source, 2).items():
        changed = (image != images_of(whole, 2)[row]).any(axis=2)
        assert changed.sum() in (8, 9)  # a pixel of the square may have had the mean already
        assert (np.abs(image[changed]) <= 1.001 / 510 / np.array(STD)).all()


def test_batches_do_not_change_the_samples() -> None:
    source = batches(augment="zero", alternating_flip=True, cutout=2)
    order(source, 0)
    np.testing.assert_array_equal(source.samples.images, shard_samples(23).images)


def test_normalisation_is_exact_to_single_precision_for_every_pixel_value() -> None:
    """All 256 values in both channels against float64, channels last."""
    images = np.arange(256, dtype=np.uint8)[:, None, None, None] ^ np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    found = Normalisation(MANIFEST)(images, Workspace())
    expected = np.empty((3, 5, 256, 2))
    for channel in range(2):
        pixels = images[:, channel].astype(np.float64).transpose(1, 2, 0)
        expected[..., channel] = (pixels / 255 - MEAN[channel]) / STD[channel]
    assert found.dtype == np.float32
    # Two roundings of each of the two terms, whose size is at most the larger of them at the ends of the range.
    bound = 4 * np.finfo(np.float32).eps * np.abs(expected).max(axis=(0, 1, 2))
    assert (np.abs(found - expected) <= bound).all()
