"""dptrain.data.transforms.color: brightness and contrast against loops over pixels and torchvision's formulas."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from selection import examples

from dptrain.arrays.random import random_words
from dptrain.data.transforms import Images
from dptrain.data.transforms.color import Brightness, Contrast

each_transform = pytest.mark.parametrize("transform", [Brightness, Contrast])
Kind = type[Brightness] | type[Contrast]


def random_images(count: int, shape: tuple[int, int, int]) -> Images:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def words_of(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, np.uint64)[:, None]


def factor_of(word: int, amount: float) -> Fraction:
    """The factor by the definition, without rounding."""
    low = max(Fraction(0), 1 - Fraction(amount))
    return low + (1 + Fraction(amount) - low) * Fraction(word >> 11, 2**53)


def gray_mean(image: Images) -> Fraction:
    """The mean gray value of an image (C, H, W), pixel by pixel, without rounding."""
    channels, height, width = image.shape
    shares = [Fraction(1, channels)] * channels
    if channels == 3:
        shares = [Fraction(299, 1000), Fraction(587, 1000), Fraction(114, 1000)]
    gray = [shares[c] * int(image[c, h, w]) for c in range(channels) for h in range(height) for w in range(width)]
    count: int = height * width
    return sum(gray, Fraction(0)) / count


def pixel_by_pixel(images: Images, words: NDArray[np.uint64], amount: float, contrast: bool) -> list[list[Fraction]]:
    """The pixels of each image, limited to 0 to 255 and not yet truncated."""
    found = []
    for image, word in zip(images, words[:, 0], strict=True):
        factor = factor_of(int(word), amount)
        added = (1 - factor) * gray_mean(image) if contrast else Fraction(0)
        found.append([min(max(factor * int(pixel) + added, Fraction(0)), Fraction(255)) for pixel in image.ravel()])
    return found


@each_transform
@examples(30)
@given(
    words=st.lists(st.integers(0, 2**64 - 1), max_size=4),
    channels=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    amount=st.floats(0.01, 3),
)
def test_pixels_agree_with_a_loop_in_exact_arithmetic(
    transform: Kind, words: list[int], channels: int, height: int, width: int, amount: float
) -> None:
    """Float32 may be on the other side of a whole number, but only if the exact value is next to it."""
    images, drawn = random_images(len(words), (channels, height, width)), words_of(*words)
    before = images.copy()
    found = transform(amount)(images, drawn)
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    np.testing.assert_array_equal(images, before)
    for image, expected in zip(found, pixel_by_pixel(images, drawn, amount, transform is Contrast), strict=True):
        for pixel, value in zip(image.ravel(), expected, strict=True):
            near = abs(value - round(value)) < Fraction(1, 1000)
            assert int(pixel) == int(value) or (near and abs(int(pixel) - round(value)) <= 1)


@each_transform
def test_pixels_are_those_of_torchvision(transform: Kind) -> None:
    """torchvision.transforms.functional: _blend, adjust_brightness, adjust_contrast and rgb_to_grayscale, for uint8.

    The mean gray value is at most 1 larger here, as torchvision truncates each gray value; its red has 0.2989.
    """
    torch = pytest.importorskip("torch")
    images, drawn = random_images(40, (3, 9, 7)), random_words(0, transform.purpose, 0, 40)[:, None]
    found = transform(0.7)(images, drawn)
    for image, word, result in zip(torch.tensor(images), drawn[:, 0], found, strict=True):
        ratio = float(factor_of(int(word), 0.7))
        other = torch.zeros_like(image)
        if transform is Contrast:
            red, green, blue = image.unbind(0)
            gray = (0.2989 * red + 0.587 * green + 0.114 * blue).to(image.dtype)
            other = torch.mean(gray.to(torch.float32), dim=(0, 1), keepdim=True)
        expected = (ratio * image + (1.0 - ratio) * other).clamp(0, 255).to(image.dtype).numpy()
        difference = np.abs(result.astype(int) - expected)
        if transform is Brightness:
            assert difference.max() == 0
        else:
            assert difference.max() <= 1
            assert (difference == 0).mean() > 0.5


@each_transform
@pytest.mark.parametrize(("amount", "low", "high"), [(0.4, 0.6, 1.4), (2.0, 0.0, 3.0)])
def test_factors_are_uniform(transform: Kind, amount: float, low: float, high: float) -> None:
    """For the 50,000 images of an epoch, in 20 intervals."""
    factors = transform(amount).factors(random_words(0, transform.purpose, 0, 50_000)[:, None])
    assert low <= factors.min() < factors.max() < high
    times = np.histogram(factors, 20, (low, high))[0]
    chi_squared = ((times - 2500) ** 2 / 2500).sum()
    assert 0 < chi_squared < 19 + 4 * np.sqrt(2 * 19)


def test_the_smallest_word_gives_the_darkest_image_and_a_middle_one_the_image() -> None:
    images = random_images(1, (3, 4, 5)).repeat(3, 0)
    words = words_of(0, 2**63, 2**64 - 1)
    dark, same, bright = Brightness(1.0)(images, words)
    assert not dark.any()
    np.testing.assert_array_equal(same, images[0])
    np.testing.assert_array_equal(bright, np.minimum(2 * images[0].astype(int), 255))
    gray, same, _ = Contrast(1.0)(images, words)
    assert np.unique(gray).tolist() == [int(gray_mean(images[0]))]
    np.testing.assert_array_equal(same, images[0])


def test_contrast_keeps_an_image_of_one_gray_value() -> None:
    """Up to truncation."""
    images = np.full((20, 3, 4, 4), 77, np.uint8)
    found = Contrast(0.9)(images, random_words(3, Contrast.purpose, 0, 20)[:, None])
    assert set(np.unique(found)) <= {76, 77}
