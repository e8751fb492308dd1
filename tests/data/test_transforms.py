"""dptrain.data.transforms: flips, crops, cutout and views against loops over pixels; the order of all transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from selection import examples

from dptrain.arrays.random import Purpose, random_words
from dptrain.data.augmentation import AugmentationConfig
from dptrain.data.transforms import Images, Transform, check_views, make_transforms, views
from dptrain.data.transforms.crop import Crop
from dptrain.data.transforms.cutout import Cutout
from dptrain.data.transforms.flip import Flip
from dptrain.errors import UsageError


def flipped(images: Images, words: NDArray[np.uint64]) -> Images:
    return Flip()(images, words[:, None])


def cropped(images: Images, words: NDArray[np.uint64], border: str, pixels: int = 4) -> Images:
    return Crop(border, pixels)(images, words[:, None])


def cut_out(images: Images, words: NDArray[np.uint64], size: int, fill: Images) -> Images:
    return Cutout(size, fill)(images, words[:, None])


def check_transforms(crop: str, crop_pixels: int, cutout: int, image_shape: tuple[int, int, int]) -> None:
    transforms(image_shape, crop=crop, crop_pixels=crop_pixels, cutout=cutout)


def transforms(image_shape: tuple[int, int, int] = (3, 32, 32), **keys: Any) -> list[Transform]:
    """The transforms of a configuration, for images of a mean of 0.2, 0.4, 0.6 and so on."""
    return make_transforms(AugmentationConfig(**keys), image_shape, [0.2 * (n + 1) for n in range(image_shape[0])])


def flip_and_crop(images: Images, words: NDArray[np.uint64], border: str, pixels: int = 4) -> Images:
    """Both, as with `--augment`."""
    return cropped(flipped(images, words), words, border, pixels)


def random_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(1, 256, (count, *shape), dtype=np.uint8)


def word(flip: int, down: int, right: int) -> int:
    """The word for a flip (0 or 1) and a window that starts at row `down` and column `right` of the padded image."""
    return right << 32 | down << 1 | flip


def source_index(position: int, extent: int, border: str) -> int | None:
    """The source index along one axis of a pixel at `position`, possibly outside; None for black."""
    if 0 <= position < extent:
        return position
    if border == "zero":
        return None
    return -position if position < 0 else 2 * (extent - 1) - position  # the border pixel itself is not repeated


def pixel_by_pixel(images: Images, words: NDArray[np.uint64], border: str, pixels: int = 4) -> Images:
    """The augmentation, one pixel at a time."""
    count, _, height, width = images.shape
    out = np.zeros_like(images)
    for n in range(count):
        bits = int(words[n])
        offsets = 2 * pixels + 1
        flip, down, right = bits & 1, (bits >> 1) % 2**31 % offsets, (bits >> 32) % offsets
        for h in range(height):
            row = source_index(h + down - pixels, height, border)
            for w in range(width):
                column = source_index(w + right - pixels, width, border)
                if row is not None and column is not None:
                    out[n, :, h, w] = images[n, :, row, width - 1 - column if flip else column]
    return out


@examples(40)
@given(
    words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    channels=st.integers(1, 3),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    border=st.sampled_from(["reflect", "zero"]),
    pixels=st.integers(1, 4),
)
def test_images_agree_with_a_loop_over_pixels(
    words: list[int], channels: int, height: int, width: int, border: str, pixels: int
) -> None:
    images, bits = random_images(len(words), (channels, height, width)), np.array(words, np.uint64)
    before = images.copy()
    found = flip_and_crop(images, bits, border, pixels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixel_by_pixel(images, bits, border, pixels))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_all_162_flips_and_offsets_agree_with_the_loop(border: str) -> None:
    words = [word(flip, down, right) for flip in range(2) for down in range(9) for right in range(9)]
    images, bits = random_images(len(words), (1, 12, 13)), np.array(words, np.uint64)
    found = flip_and_crop(images, bits, border)
    np.testing.assert_array_equal(found, pixel_by_pixel(images, bits, border))
    assert len({image.tobytes() for image in flip_and_crop(images[:1].repeat(162, 0), bits, border)}) == 162


@pytest.mark.parametrize("pixels", [11, 12, 40])
def test_a_shift_may_be_longer_than_the_image(pixels: int) -> None:
    images, bits = random_images(60, (2, 12, 13)), random_words(0, Purpose.AUGMENTATION, 0, 60)
    for border in ("zero", "reflect")[: 2 if pixels < 12 else 1]:
        found = flip_and_crop(images, bits, border, pixels)
        np.testing.assert_array_equal(found, pixel_by_pixel(images, bits, border, pixels))


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_middle_window_is_the_image_and_its_mirror_image(border: str) -> None:
    images = random_images(2, (3, 8, 8))
    found = flip_and_crop(images, np.array([word(0, 4, 4), word(1, 4, 4)], np.uint64), border)
    np.testing.assert_array_equal(found[0], images[0])
    np.testing.assert_array_equal(found[1], images[1, :, :, ::-1])


def test_flip_and_crop_can_be_used_alone() -> None:
    """Digits must not be flipped. Flip and crop use different bits, so neither changes the other."""
    images = random_images(2, (3, 8, 8))
    words = np.array([word(1, 2, 7), word(0, 2, 7)], np.uint64)
    np.testing.assert_array_equal(flipped(images, words), [images[0, :, :, ::-1], images[1]])
    unflipped = np.array([word(0, 2, 7)] * 2, np.uint64)
    np.testing.assert_array_equal(cropped(images, words, "zero"), pixel_by_pixel(images, unflipped, "zero"))


def test_words_of_an_epoch_reach_every_flip_and_offset_equally_often() -> None:
    """Each image contains its coordinates; for the 50,000 images of an epoch."""
    size, count = 16, 50_000
    rows, columns = np.mgrid[0:size, 0:size].astype(np.uint8)
    middle = slice(size // 2, size // 2 + 2)
    times = np.zeros((2, 9, 9), int)
    for words in np.split(random_words(0, Purpose.AUGMENTATION, 0, count), 25):
        images = np.broadcast_to(np.stack([rows, columns]), (len(words), 2, size, size))
        seen = flip_and_crop(images, words, "reflect")[:, :, middle, middle].astype(int)
        flipped = seen[:, 1, 0, 1] < seen[:, 1, 0, 0]
        column = np.where(flipped, size - 1 - seen[:, 1, 0, 0], seen[:, 1, 0, 0])
        down, right = seen[:, 0, 0, 0] - size // 2 + 4, column - size // 2 + 4
        np.add.at(times, (flipped.astype(int), down, right), 1)
    expected = count / times.size
    chi_squared = ((times - expected) ** 2 / expected).sum()
    # 161 degrees of freedom: mean 161, standard deviation sqrt(2 * 161) = 18; four of them on either side.
    assert 89 < chi_squared < 233


@pytest.mark.parametrize(("height", "width"), [(4, 32), (32, 4), (1, 1)])
def test_image_too_small_to_reflect_is_refused_with_what_to_do(height: int, width: int) -> None:
    images, words = random_images(1, (1, height, width)), np.array([5], np.uint64)
    with pytest.raises(UsageError, match=rf"at least 5 x 5 pixels, these are {height} x {width}; use --crop zero"):
        check_transforms("reflect", 4, 0, (1, height, width))
    for border in ("zero", "none"):
        check_transforms(border, 4, 0, (1, height, width))
    np.testing.assert_array_equal(flip_and_crop(images, words, "zero"), pixel_by_pixel(images, words, "zero"))


@examples(40)
@given(
    words=st.lists(st.integers(0, 2**64 - 1), max_size=6),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    size=st.integers(1, 4),
)
def test_cutout_agrees_with_a_loop_over_images(words: list[int], height: int, width: int, size: int) -> None:
    images, fill = random_images(len(words), (2, height, width)), np.array([7, 200], np.uint8)
    expected = images.copy()
    for image, bits in zip(expected, words, strict=True):
        top, left = bits % 2**32 % (height - size + 1), (bits >> 32) % (width - size + 1)
        image[:, top : top + size, left : left + size] = fill[:, None, None]
    before = images.copy()
    found = cut_out(images, np.array(words, np.uint64), size, fill)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(images, before)


def test_squares_of_cutout_reach_every_place_within_the_image_equally_often() -> None:
    """25 places of an 8 x 8 square in an image of 12 x 12; for the 50,000 images of an epoch."""
    words = random_words(0, Purpose.CUTOUT, 0, 50_000)
    images = np.zeros((len(words), 1, 12, 12), np.uint8)
    found = cut_out(images, words, 8, np.array([1], np.uint8))[:, 0]
    assert (found.sum(axis=(1, 2)) == 64).all()
    places = found.any(axis=2).argmax(axis=1) * 5 + found.any(axis=1).argmax(axis=1)
    expected = len(words) / 25
    chi_squared = ((np.bincount(places, minlength=25) - expected) ** 2 / expected).sum()
    assert 0 < chi_squared < 24 + 4 * np.sqrt(2 * 24)


def test_an_image_too_small_for_cutout_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"--cutout 8 needs images of at least 9 x 9 pixels, these are 8 x 9; use"):
        check_transforms("none", 4, 8, (1, 8, 9))
    check_transforms("none", 4, 8, (1, 9, 9))
    with pytest.raises(UsageError, match="at least 3 x 3 pixels, these are 2 x 9; use --crop zero or none, or fewer"):
        check_transforms("reflect", 2, 0, (1, 2, 9))
    check_transforms("reflect", 2, 0, (1, 3, 3))


@pytest.mark.parametrize(
    ("tta", "expected"),
    [
        ("none", [(1.0, 0, 0)]),
        ("mirror", [(0.5, 0, 0), (0.5, 1, 0)]),
        (
            "mirror-translate",
            [(1 / 4, 0, 0), (1 / 4, 1, 0), (1 / 8, 0, -1), (1 / 8, 1, -1), (1 / 8, 0, 1), (1 / 8, 1, 1)],
        ),
    ],
)
def test_views_are_mirror_images_and_shifts_by_one_pixel(tta: str, expected: list[tuple[float, int, int]]) -> None:
    """As weight, mirrored, and the shift in H and W of the window into the image."""
    images = random_images(3, (2, 4, 6))
    found = views(images, tta)
    assert [weight for weight, _ in found] == [weight for weight, _, _ in expected]
    for (_, view), (_, mirrored, shift) in zip(found, expected, strict=True):
        shifted = word(0, 1 + shift, 1 + shift)
        window = pixel_by_pixel(images, np.array([shifted] * 3, np.uint64), "reflect", 1)
        np.testing.assert_array_equal(view, window[..., ::-1] if mirrored else window)
    assert sum(weight for weight, _ in found) == 1


def test_an_image_of_one_pixel_cannot_be_shifted_with_a_reflected_border() -> None:
    with pytest.raises(UsageError, match="--tta mirror-translate needs images of at least 2 x 2 pixels, these are 1 x"):
        check_views("mirror-translate", (3, 1, 8))
    check_views("mirror", (3, 1, 8))
    check_views("mirror-translate", (3, 2, 2))


def test_transforms_are_applied_in_the_documented_order() -> None:
    keys: dict[str, Any] = {
        "crop": "zero",
        "flip": True,
        "resized_crop": 0.5,
        "brightness": 0.1,
        "contrast": 0.1,
        "cutout": 2,
    }
    names = ["Flip", "Crop", "ResizedCrop", "Brightness", "Contrast", "Cutout"]
    assert [type(one).__name__ for one in transforms(**keys)] == names
    for name, value in keys.items():
        assert len(transforms(**{name: value})) == 1
        others = transforms(**{other: values for other, values in keys.items() if other != name})
        assert len(others) == 5
    assert transforms() == []
    assert [type(one).__name__ for one in transforms(flip=True, alternating_flip=True)] == ["AlternatingFlip"]


def test_transforms_have_the_options_of_their_keys() -> None:
    crop, resized, bright, contrast = transforms(
        crop="reflect", crop_pixels=3, resized_crop=0.5, resized_crop_aspect=2.0, brightness=0.1, contrast=0.3
    )
    assert isinstance(crop, Crop)
    assert (crop.border, crop.pixels) == ("reflect", 3)
    assert vars(resized) == {"area": 0.5, "aspect": 2.0}
    assert (vars(bright), vars(contrast)) == ({"amount": 0.1}, {"amount": 0.3})


@pytest.mark.parametrize(("fill", "expected"), [("mean", [51, 102, 153]), ("0", [0, 0, 0]), ("255", [255] * 3)])
def test_the_square_of_cutout_has_the_mean_color_or_a_stated_value(fill: str, expected: list[int]) -> None:
    (transform,) = transforms(cutout=2, cutout_fill=fill)
    images = np.full((20, 3, 5, 6), 7, np.uint8)
    found = transform(images, random_words(0, Purpose.CUTOUT, 0, 20)[:, None])
    for image in found:
        changed = image[:, (image != 7).any(axis=0)]
        np.testing.assert_array_equal(changed, np.array(expected)[:, None].repeat(4, 1))


def test_transforms_share_no_words_but_flip_and_crop() -> None:
    every = transforms(flip=True, crop="zero", resized_crop=0.5, brightness=0.1, contrast=0.1, cutout=2)
    purposes = [one.purpose for one in every] + [Purpose.ALTERNATING_FLIP, Purpose.SAMPLE_ORDER, Purpose.LAYER]
    assert len(set(purposes)) == len(purposes) - 1
