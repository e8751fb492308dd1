"""dptrain.data.transforms.resized_crop: parts against torchvision's loop, pixels against PyTorch's interpolation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from selection import examples

from dptrain.arrays.random import Purpose, random_words
from dptrain.data.transforms import Images
from dptrain.data.transforms.resized_crop import ATTEMPTS, ResizedCrop

Part = tuple[int, int, int, int]  # top, left, height, width


def random_images(count: int, shape: tuple[int, int, int]) -> Images:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def words(count: int, seed: int = 0) -> NDArray[np.uint64]:
    each = ResizedCrop.words
    return random_words(seed, Purpose.RESIZED_CROP, 0, count * each).reshape(count, each)


def part_by_loop(drawn: list[int], area: float, aspect: float, height: int, width: int) -> tuple[Part, float]:
    """torchvision's RandomResizedCrop.get_params, with the draws from words; and how near a rounding was to a tie."""
    tie = 1.0
    for word in drawn[:ATTEMPTS]:
        share, ratio = word % 2**32 / 2**32, (word >> 32) / 2**32
        target_area = height * width * (area + (1 - area) * share)
        aspect_ratio = math.exp(-math.log(aspect) + 2 * math.log(aspect) * ratio)
        sides = math.sqrt(target_area * aspect_ratio), math.sqrt(target_area / aspect_ratio)
        tie = min(tie, *(abs(side % 1 - 0.5) for side in sides))
        w, h = map(round, sides)
        if 0 < w <= width and 0 < h <= height:
            place = drawn[ATTEMPTS]
            return (place % 2**32 % (height - h + 1), (place >> 32) % (width - w + 1), h, w), tie
    w, h = width, height
    if width / height < 1 / aspect:
        h = round(w * aspect)
    elif width / height > aspect:
        w = round(h * aspect)
    return ((height - h) // 2, (width - w) // 2, h, w), tie


def exact_pixels(image: Images, part: Part) -> Images:
    """The part of an image (C, H, W), enlarged pixel by pixel, with weights that are multiples of 1/256."""
    channels, height, width = image.shape
    out = np.empty_like(image)

    def neighbours(i: int, size: int, start: int, extent: int) -> list[tuple[int, Fraction]]:
        place = min(max((Fraction(2 * i + 1, 2)) * extent / size - Fraction(1, 2), Fraction(0)), Fraction(extent - 1))
        low = math.floor(place)
        weight = Fraction(math.floor((place - low) * 256 + Fraction(1, 2)), 256)
        return [(start + low, 1 - weight), (start + min(low + 1, extent - 1), weight)]

    top, left, part_height, part_width = part
    for h in range(height):
        for w in range(width):
            around = [
                (row, column, down * across)
                for row, down in neighbours(h, height, top, part_height)
                for column, across in neighbours(w, width, left, part_width)
            ]
            for c in range(channels):
                value = sum((weight * int(image[c, row, column]) for row, column, weight in around), Fraction(0))
                out[c, h, w] = math.floor(value + Fraction(1, 2))
    return out


@examples(25)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 3),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    area=st.floats(0.01, 0.99),
    aspect=st.floats(1, 3),
)
def test_every_pixel_is_that_of_the_definition(
    seed: int, count: int, channels: int, height: int, width: int, area: float, aspect: float
) -> None:
    images, transform = random_images(count, (channels, height, width)), ResizedCrop(area, aspect)
    before = images.copy()
    found = transform(images, words(count, seed))
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    parts = list(zip(*(one.tolist() for one in transform.parts(words(count, seed), height, width)), strict=True))
    for image, result, part in zip(images, found, parts, strict=True):
        np.testing.assert_array_equal(result, exact_pixels(image, part))
    np.testing.assert_array_equal(images, before)


@examples(60)
@given(
    drawn=st.lists(st.integers(0, 2**64 - 1), min_size=11, max_size=11),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    area=st.floats(0.01, 0.99),
    aspect=st.floats(1, 4),
)
def test_parts_are_those_of_the_loop_of_torchvision(
    drawn: list[int], height: int, width: int, area: float, aspect: float
) -> None:
    expected, tie = part_by_loop(drawn, area, aspect, height, width)
    found = ResizedCrop(area, aspect).parts(np.array([drawn], np.uint64), height, width)
    if tie > 1e-9:
        assert tuple(int(one[0]) for one in found) == expected


@pytest.mark.parametrize(
    ("height", "width", "part"), [(2, 40, (0, 18, 2, 3)), (40, 2, (18, 0, 3, 2)), (9, 9, (0, 0, 9, 9))]
)
def test_an_image_in_which_no_part_fits_gives_its_middle(height: int, width: int, part: Part) -> None:
    """All attempts draw the whole area and the largest ratio."""
    drawn = np.full((1, 11), 2**64 - 1, np.uint64)
    assert part_by_loop([2**64 - 1] * 11, 0.9, 1.5, height, width)[0] == part
    assert tuple(int(one[0]) for one in ResizedCrop(0.9, 1.5).parts(drawn, height, width)) == part


def test_pixels_are_those_of_pytorch() -> None:
    """To 1/2 of a pixel value for rounding, and 1/2 for the weights of each axis, which are multiples of 1/256."""
    torch = pytest.importorskip("torch")
    images, transform = random_images(60, (3, 32, 24)), ResizedCrop(0.08)
    found = transform(images, words(60)).astype(np.float64)
    for image, result, top, left, h, w in zip(images, found, *transform.parts(words(60), 32, 24), strict=True):
        part = torch.tensor(image[None, :, top : top + h, left : left + w], dtype=torch.float64)
        exact = torch.nn.functional.interpolate(part, size=(32, 24), mode="bilinear", align_corners=False)[0].numpy()
        assert np.abs(result - exact).max() < 1.5


def test_a_gradient_is_enlarged_to_a_gradient() -> None:
    """Neighbours differ by 8, so the weights cost at most 8 / 512."""
    transform, images = ResizedCrop(0.08), np.broadcast_to(np.arange(24, dtype=np.uint8) * 8, (60, 1, 32, 24))
    _, lefts, _, widths = transform.parts(words(60), 32, 24)
    for result, left, w in zip(transform(images, words(60)), lefts, widths, strict=True):
        place = np.clip((np.arange(24) + 0.5) * w / 24 - 0.5, 0, w - 1)
        assert np.abs(result - 8 * (left + place)).max() <= 0.5 + 8 / 512


def test_areas_and_logarithms_of_ratios_are_uniform_before_rounding() -> None:
    """In a large square image, where rounding is small, with areas for which every attempt fits."""
    _, _, heights, widths = ResizedCrop(0.1, 4 / 3).parts(words(50_000), 10_000, 10_000)
    area, ratio = heights * widths / 1e8, np.log(widths / heights) / np.log(4 / 3)
    # Attempts with an area above 3/4 may not fit; below, all areas are equally probable.
    for values, low, high in ((area[area < 0.7], 0.1, 0.7), (ratio[area < 0.7], -1.0, 1.0)):
        times = np.histogram(values, 20, (low, high))[0]
        expected = times.sum() / 20
        assert times.sum() > 25_000
        assert 0 < ((times - expected) ** 2 / expected).sum() < 19 + 4 * np.sqrt(2 * 19)


def test_places_are_uniform() -> None:
    tops, lefts, heights, widths = ResizedCrop(0.25, 1.0).parts(words(50_000), 32, 32)
    assert (heights == widths).all()
    assert (tops + heights <= 32).all()
    size = 24  # pixels: 9 x 9 places
    places = (tops * 9 + lefts)[heights == size]
    expected = len(places) / 81
    chi_squared = ((np.bincount(places, minlength=81) - expected) ** 2 / expected).sum()
    assert 0 < chi_squared < 80 + 4 * np.sqrt(2 * 80)


def test_the_bits_do_not_depend_on_the_number_of_images_at_a_time() -> None:
    images, drawn, transform = random_images(9, (3, 12, 13)), words(9), ResizedCrop(0.2)
    together = transform(images, drawn)
    np.testing.assert_array_equal(together, np.concatenate([transform(images[[n]], drawn[[n]]) for n in range(9)]))
