"""dptrain.report.page.pictures: samples and filters of any size and number of channels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from dptrain.report.page.pictures import LARGEST, Picture, data_uri, filter_pictures, png, sample_picture


def test_a_grey_picture_is_a_grey_png() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = png(picture)
    assert struct.unpack_from(">IIBB", content, 16) == (4, 3, 8, 0)
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack_from(">I", content, start - 8)
    assert zlib.decompress(content[start : start + length]) == b"".join(b"\0" + row.tobytes() for row in picture)


@pytest.mark.parametrize(("channels", "shape"), [(1, (5, 7)), (2, (5, 7)), (3, (5, 7, 3)), (4, (5, 7))])
def test_three_channels_are_colors_and_others_show_the_first(channels: int, shape: tuple[int, ...]) -> None:
    image: Picture = np.random.default_rng(0).integers(0, 256, (channels, 5, 7)).astype(np.uint8)
    found = sample_picture(image)
    assert found.shape == shape
    assert np.array_equal(found, image.transpose(1, 2, 0) if channels == 3 else image[0])


def test_a_large_picture_is_reduced_to_means() -> None:
    image: Picture = np.kron(np.array([[10, 200], [30, 40]]), np.ones((100, 100)))[None].astype(np.uint8)
    found = sample_picture(image)
    assert max(found.shape) <= LARGEST
    assert (found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]) == (10, 200, 30, 40)
    assert sample_picture(np.zeros((3, 1, 1000), np.uint8)).shape == (1, 90, 3)


def test_twenty_four_large_photos_fit_a_page() -> None:
    photos = np.random.default_rng(0).integers(0, 256, (24, 3, 224, 224), dtype=np.uint8)
    assert sum(len(data_uri(sample_picture(photo))) for photo in photos) < 1_000_000


def test_a_filter_is_scaled_to_its_largest_absolute_value() -> None:
    weight = np.zeros((3, 1, 2, 2), np.float32)
    weight[0, 0, 0], weight[0, 0, 1] = (-4, 2), (0, 4)
    weight[1, 0, 0, 0] = 0.001
    first, second, third = filter_pictures(weight, 9)
    assert first.tolist() == [[0, 191], [128, 255]]
    assert second.tolist() == [[255, 128], [128, 128]]
    assert third.tolist() == [[128, 128], [128, 128]]
    assert len(filter_pictures(weight, 2)) == 2
