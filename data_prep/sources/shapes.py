"""Synthetic colour images of ten shapes: a data set that needs no download.

Every image shows one shape of random position, size, angle and colours, on a random background with texture, a small
spot and noise. Brightness and colour do not depend on the class: a linear model learns little, a small convolutional
network learns the task in a minute.

A shape is a signed distance function d(u, v), negative inside, on coordinates in which the shape reaches from about -1
to 1 (compare I. Quilez, "2D distance functions"). The coverage of a pixel is d in pixels, clipped.

Shapes: n images, C = 3, H = W = 32. Images are drawn as (n, H, W, C) and transposed at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.system.arguments import whole

from ..images import ImageData, ImageSource, LabelledImages
from ..spool import Spool

Array = NDArray[np.float64]

SIZE = 32
PARAMETERS = 64  # random words of an image before those of its pixel noise
NOISE_WORDS = SIZE * SIZE * 3 // 8  # one byte for each channel
# With these values, softmax regression reaches 29 % and convnet about 90 % after 3 epochs on 10,000 images.
UNIT = (9.0, 13.0)  # half the extent of a shape, pixels
SHIFT = 3.0  # largest distance from the middle on both axes, pixels
TURN = 0.5  # largest angle, radians
TEXTURE = 0.1
NOISE = (0.05, 0.1)  # full width of the uniform pixel noise
DRAWING = 1 << 48  # separates the random words of drawing from those of the packing shuffle
BLOCK = 250  # images drawn at a time, so that the arrays stay in the processor's cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=whole(), default=10_000, metavar="N", help="training images (default: 10000)")
    parser.add_argument("--test", type=whole(), default=2_000, metavar="N", help="test images (default: 2000)")


def read_shapes(out: Path, train: int = 10_000, test: int = 2_000, seed: int = 0) -> ImageData:
    """Draw both splits, stored on the disk of the data set `out`.

    Image i of a split depends on (seed, split, i) alone; its class is i mod 10.
    """
    return ImageData("shapes", CLASSES, _draw_split(out, train, seed, 0), _draw_split(out, test, seed, 1))


SOURCE = ImageSource(
    "shapes",
    "draw and pack ten classes of coloured shapes (no download)",
    add_arguments,
    lambda options: read_shapes(options.folder, options.train, options.test, options.seed),
    example="data/shapes --train 2000 --test 400",
)


def _draw_split(out: Path, count: int, seed: int, split: int) -> LabelledImages:
    """`count` images of a split and their labels."""
    generator = np.random.Philox(key=np.array([seed, DRAWING | split], np.uint64))
    images = Spool(out, (3, SIZE, SIZE))
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        n = rows.stop - start
        words = generator.random_raw(n * (PARAMETERS + NOISE_WORDS)).reshape(n, PARAMETERS + NOISE_WORDS)
        images.append(_draw(words, labels[rows]).transpose(0, 3, 1, 2))
    return LabelledImages(images, labels)


def _draw(words: NDArray[np.uint64], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images uint8 (n, H, W, 3) of the classes `labels` (n,) from random words (n, PARAMETERS + NOISE_WORDS)."""
    draws = _Draws((words[:, :PARAMETERS] >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    background, foreground = _colours(draws)
    image = background + _texture(draws)[..., None] * draws.between(-TEXTURE, TEXTURE, 3)
    spot, spot_colour = _spot(draws)[..., None], draws.between(0, 1, 3)
    image = image + spot * (spot_colour - image)
    image = image + _figure(draws, labels)[..., None] * (foreground - image)
    noise = words[:, PARAMETERS:].astype("<u8").view(np.uint8).reshape(len(words), SIZE, SIZE, 3)
    image = image + (noise / 255.0 - 0.5) * draws.between(*NOISE)
    pixels: NDArray[np.uint8] = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    return pixels


class _Draws:
    """Takes uniform numbers of 0..1 (n, PARAMETERS) column by column, shaped to broadcast to (n, H, W[, C])."""

    def __init__(self, uniform: Array) -> None:
        self._uniform, self._used = uniform, 0

    def between(self, low: float, high: float, channels: int = 1) -> Array:
        """The next numbers, uniform from low to high, (n, 1, 1, channels)."""
        part = self._uniform[:, self._used : self._used + channels]
        self._used += channels
        return low + (high - low) * part.reshape(-1, 1, 1, channels)

    def scalar(self, low: float, high: float) -> Array:
        """The next number of each image, (n, 1, 1)."""
        return self.between(low, high)[..., 0]


def _grid(draws: _Draws, unit_range: tuple[float, float], shift: float, turn: float) -> tuple[Array, Array, Array]:
    """Random local coordinates u, v (n, H, W) and their unit in pixels (n, 1, 1).

    The origin is up to `shift` pixels from the middle on both axes; the axes are rotated by up to `turn`.
    """
    unit = draws.scalar(*unit_range)
    centre_x = SIZE / 2 + draws.scalar(-shift, shift)
    centre_y = SIZE / 2 + draws.scalar(-shift, shift)
    angle = draws.scalar(-turn, turn)
    pixels = np.arange(SIZE) + 0.5
    x, y = (pixels[None, None, :] - centre_x) / unit, (pixels[None, :, None] - centre_y) / unit
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x, unit


def _figure(draws: _Draws, labels: NDArray[np.int64]) -> Array:
    """How much of each pixel the shape of class `labels` covers, 0..1 (n, H, W)."""
    u, v, unit = _grid(draws, UNIT, SHIFT, TURN)
    distance = np.empty_like(u)
    for label, function in enumerate(DISTANCES.values()):
        rows = np.flatnonzero(labels == label)
        distance[rows] = function(u[rows], v[rows])
    return _coverage(distance, unit)


def _spot(draws: _Draws) -> Array:
    """How much of each pixel a small ellipse covers, 0..1 (n, H, W)."""
    u, v, unit = _grid(draws, (0.8, 2.2), SIZE / 2, np.pi)
    return _coverage(np.hypot(u, 1.6 * v) - 1, unit)


def _coverage(distance: Array, unit: Array) -> Array:
    return np.clip(0.5 - distance * unit, 0, 1)


def _colours(draws: _Draws) -> tuple[Array, Array]:
    """Colours of background and figure, (n, 1, 1, 3), with a distance of at least 0.4 in RGB.

    The direction from one to the other is random: the figure may be darker or brighter, in any channel.
    """
    background = draws.between(0.0, 0.8, 3)
    direction = draws.between(-1, 1, 3)
    direction /= np.sqrt((direction**2).sum(axis=-1, keepdims=True)) + 1e-9
    foreground = background + direction * draws.between(0.4, 0.9)
    # A colour outside 0..1 is reflected at the border: clipping it could cost the contrast.
    foreground = 1 - np.abs(1 - np.abs(foreground))
    return background, foreground


def _texture(draws: _Draws) -> Array:
    """Two plane waves of random direction, wavelength and phase, about -1 to 1, (n, H, W)."""
    pixels = np.arange(SIZE) / SIZE
    total: Array = np.zeros((1, SIZE, SIZE))
    for _ in range(2):
        frequency, angle, phase = draws.scalar(2, 30), draws.scalar(0, 2 * np.pi), draws.scalar(0, 2 * np.pi)
        along = np.cos(angle) * pixels[None, None, :] + np.sin(angle) * pixels[None, :, None]
        total = total + 0.5 * np.sin(frequency * along + phase)
    return total


def _cross(u: Array, v: Array) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.95, v - 0.27), np.maximum(u - 0.27, v - 0.95))


def _heart(u: Array, v: Array) -> Array:
    """A square standing on its corner, with a half disc on each of its upper sides."""
    p, q = 0.72 * (u + v), 0.72 * (u - v)
    square = np.maximum(np.abs(p), np.abs(q)) - 0.5
    return np.minimum(square, np.minimum(np.hypot(p - 0.5, q), np.hypot(p, q - 0.5)) - 0.5)


def _star(u: Array, v: Array) -> Array:
    """Five points: by symmetry one line, from the point at angle 0 to the notch at 36 degrees."""
    radius = np.hypot(u, v)
    angle = np.abs((np.arctan2(v, u) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    notch_x, notch_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    length = np.hypot(1 - notch_x, notch_y)
    distance: Array = ((radius * np.cos(angle) - 1) * notch_y + radius * np.sin(angle) * (1 - notch_x)) / length
    return distance


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "bar": lambda u, v: np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.3),
    "circle": lambda u, v: np.hypot(u, v) - 0.85,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.75 - np.hypot(u - 0.5, v)),
    "cross": _cross,
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.65) - 0.15,
    "heart": _heart,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.17,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.75,
    "star": _star,
    "triangle": lambda u, v: np.maximum(-u, 0.5 * u + np.sqrt(0.75) * np.abs(v)) - 0.5,
}
CLASSES = tuple(DISTANCES)
