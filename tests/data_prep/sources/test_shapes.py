"""data_prep.sources.shapes: images are reproducible, show their class, and are too hard for a linear model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.images import ImageData
from data_prep.sources import shapes
from data_prep.sources.shapes import CLASSES, DISTANCES, read_shapes


def drawn(train: int, test: int, seed: int = 0) -> ImageData:
    """The data set with images in memory."""
    data = read_shapes(Path(), train, test, seed)
    parts = {split: replace(part, images=part.images[:]) for split, part in data.splits.items()}
    return replace(data, train=parts["train"], test=parts["test"])


def test_images_have_the_right_shape_and_type() -> None:
    data = drawn(23, 12)
    assert data.train.images.shape == (23, 3, 32, 32)
    assert data.test.images.shape == (12, 3, 32, 32)
    assert data.train.images.dtype == np.uint8
    assert data.classes == CLASSES
    assert len(set(CLASSES)) == 10
    assert data.train.labels.tolist() == [number % 10 for number in range(23)]


def test_image_depends_only_on_seed_split_and_number() -> None:
    few, many = drawn(30, 10, seed=5), drawn(600, 10, seed=5)
    assert np.array_equal(few.train.images, many.train.images[:30])
    assert not np.array_equal(few.train.images, drawn(30, 10, seed=6).train.images)
    assert not np.array_equal(few.train.images[:10], few.test.images)


@pytest.mark.slow
def test_no_image_occurs_twice() -> None:
    data = drawn(1000, 300)
    images = np.concatenate([data.train.images, data.test.images]).reshape(1300, -1)
    assert len(np.unique(images, axis=0)) == 1300


def lens_area(one: float, other: float, apart: float) -> float:
    """Area common to two discs of radii `one` and `other` whose centres lie `apart` (two circular segments)."""
    area = 0.0
    for radius, second in ((one, other), (other, one)):
        chord = (apart**2 + radius**2 - second**2) / (2 * apart)
        area += radius**2 * np.arccos(chord / radius) - chord * np.sqrt(radius**2 - chord**2)
    return area


# Area by geometry, in units of the local coordinates.
AREAS = {
    "bar": 2.0 * 0.6,
    "circle": np.pi * 0.85**2,
    "crescent": np.pi * 0.95**2 - lens_area(0.95, 0.75, 0.5),
    "cross": 2 * 1.9 * 0.54 - 0.54**2,
    "frame": 1.6**2 - 1.0**2,
    "heart": (1 + np.pi / 4) / (2 * 0.72**2),  # unit square and two half discs, in axes stretched by 0.72 sqrt 2
    "ring": np.pi * (0.89**2 - 0.55**2),
    "square": 1.5**2,
    "star": 10 * 0.5 * 0.42 * np.sin(np.pi / 5),  # ten triangles of sides 1 and 0.42 at 36 degrees
    "triangle": 3 * np.sqrt(3) * 0.5**2,  # of inradius 0.5
}


@pytest.mark.parametrize("name", CLASSES)
def test_distance_is_negative_inside_and_never_grows_faster_than_the_distance_moved(name: str) -> None:
    step = 0.01
    axis = np.arange(-2 + step / 3, 2, step)  # no line of the grid runs along an edge
    u, v = np.meshgrid(axis, axis)
    distance = DISTANCES[name](u, v)
    assert (distance[np.hypot(u, v) > 1.45] > 0).all()
    for direction in (0, 1):
        assert np.abs(np.diff(distance, axis=direction)).max() < 1.02 * step
    assert np.count_nonzero(distance < 0) * step**2 == pytest.approx(AREAS[name], rel=0.02)


@pytest.mark.slow
def test_classes_do_not_differ_in_colour_or_brightness() -> None:
    data = drawn(4000, 10)
    pixels = data.train.images.mean(axis=(2, 3))
    means = np.array([pixels[data.train.labels == label].mean(axis=0) for label in range(10)])
    # 400 images a class: the standard error of a class mean is about 2.5.
    assert np.ptp(means, axis=0).max() < 20


def test_shapes_differ_in_position_angle_and_size() -> None:
    generator = np.random.Philox(key=np.array([0, 0], np.uint64))
    labels = np.full(400, CLASSES.index("bar"), np.int64)
    uniform = np.random.Generator(generator).random((400, 64))
    coverage = shapes._figure(shapes._Draws(uniform), labels)
    pixels = np.arange(32) + 0.5
    mass = coverage.sum(axis=(1, 2))
    x = (coverage.sum(axis=1) @ pixels) / mass
    y = (coverage.sum(axis=2) @ pixels) / mass
    covariance = np.einsum("nhw,nh,nw->n", coverage, np.ones((400, 32)) * pixels, np.ones((400, 32)) * pixels)
    slope = covariance / mass - x * y  # its sign is that of the bar's angle
    # A uniform number from -3 to 3 has the standard deviation 1.73, and half the angles are of each sign.
    for centre in (x, y):
        assert centre.std() == pytest.approx(1.73, rel=0.15)
        assert centre.mean() == pytest.approx(16, abs=0.4)
    assert 150 < np.count_nonzero(slope > 0) < 250
    assert mass.max() > 1.5 * mass.min()


@pytest.mark.slow
def test_linear_model_stays_clearly_below_a_convnet() -> None:
    data = drawn(2000, 1000)
    accuracy = softmax_regression_accuracy(
        data.train.images, data.train.labels, data.test.images, data.test.labels, steps=60
    )
    assert accuracy < 0.35
    # It does learn something, so the bound above is about the data and not about a broken regression.
    assert accuracy > 0.12


def softmax_regression_accuracy(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
    steps: int,
) -> float:
    """Test accuracy of multinomial logistic regression on pixels by full-batch gradient descent."""
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    mean = x.mean(axis=0)
    x -= mean
    weight = np.zeros((x.shape[1], 10), np.float32)
    target = np.eye(10, dtype=np.float32)[labels]
    for _ in range(steps):
        scores = x @ weight
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        weight -= 0.1 / len(x) * (x.T @ (scores / scores.sum(axis=1, keepdims=True) - target))
    test = test_images.reshape(len(test_images), -1).astype(np.float32) / 255 - mean
    return float(((test @ weight).argmax(axis=1) == test_labels).mean())
