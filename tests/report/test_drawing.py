"""dptrain.report.drawing: pixels of the confusion matrix and of sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dptrain.report.drawing import confusion_picture, sheet
from dptrain.report.page.pictures import Picture
from dptrain.system.lettering import PALE

WHITE, BLUE, ORANGE = np.array([255, 255, 255]), np.array([29, 95, 174]), np.array([203, 87, 8])
Matrix = NDArray[np.int64]


def random_matrix(classes: int) -> Matrix:
    """A matrix with empty cells, an empty row, and rows of different sums."""
    random = np.random.default_rng(classes)
    matrix = random.poisson(0.7, (classes, classes)) + np.diag(random.integers(0, 30, classes))
    matrix[classes // 2] = 0
    return matrix


def names_of(classes: int) -> list[str]:
    return [f"class {number}" for number in range(classes)]


def inside(picture: Picture) -> tuple[int, int, int, int]:
    """The rows and columns within the frame of a matrix: first row, row after the last, and so for columns."""
    frame = (picture == PALE).all(axis=2)
    (top, bottom), (left, right) = (np.flatnonzero(counts > 80)[[0, -1]] for counts in (frame.sum(1), frame.sum(0)))
    return int(top) + 1, int(bottom), int(left) + 1, int(right)


def cells(picture: Picture, classes: int) -> Picture:
    """The pixels within the frame, (K, K, side, side, 3) for K classes: row, column, and the pixels of a cell."""
    top, bottom, left, right = inside(picture)
    inner = picture[top:bottom, left:right]
    side = len(inner) // classes
    assert inner.shape == (classes * side, classes * side, 3)
    return inner.reshape(classes, side, classes, side, 3).swapaxes(1, 2)


def shades(matrix: Matrix) -> NDArray[np.float64]:
    """White, blended with blue on the diagonal and orange elsewhere, by the root of the share of the true class."""
    roots = (matrix / np.maximum(1, matrix.sum(axis=1))[:, None]) ** 0.5
    pure = np.where(np.equal.outer(*2 * [np.arange(len(matrix))])[:, :, None], BLUE, ORANGE)
    found: NDArray[np.float64] = (1 - roots)[:, :, None] * WHITE + roots[:, :, None] * pure
    return found


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 10, 24, 25, 50, 51, 100, 1000])
def test_the_shade_of_a_cell_is_that_of_its_share_of_the_true_class(classes: int) -> None:
    matrix = random_matrix(classes)
    picture = confusion_picture(matrix, names_of(classes))
    found = cells(picture, classes)
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 1100
    edge = np.concatenate([found[:, :, 0], found[:, :, -1], found[:, :, :, 0], found[:, :, :, -1]], axis=2)
    assert np.abs(edge - shades(matrix)[:, :, None]).max() <= 0.5 + 1e-9
    if classes > 24:  # cells without numbers
        assert (found == found[:, :, :1, :1]).all()


def luminance(color: NDArray[np.float64]) -> NDArray[np.float64]:
    """The relative luminance of colors (..., 3), as WCAG 2 defines it."""
    share = color / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    found: NDArray[np.float64] = linear @ np.array([0.2126, 0.7152, 0.0722])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_the_number_of_a_cell_can_be_read_on_every_shade(right: bool) -> None:
    """WCAG 2 asks for a contrast of 4.5, which white and black both just reach on the shade in the middle."""
    for percent in range(1, 100, 2):
        matrix = np.array([[percent, 100 - percent], [0, 0]] if right else [[100 - percent, percent], [0, 0]])
        cell = cells(confusion_picture(matrix, ["a", "b"]), 2)[0, 0 if right else 1].reshape(-1, 3)
        ground, of_pixels = luminance(cell[:1].astype(float))[0], luminance(cell.astype(float))
        contrast = max((of_pixels.max() + 0.05) / (ground + 0.05), (ground + 0.05) / (of_pixels.min() + 0.05))
        assert contrast > 4.2, percent


def test_cells_without_samples_have_no_number() -> None:
    matrix = random_matrix(10)
    found = cells(confusion_picture(matrix, names_of(10)), 10)
    drawn = (found != found[:, :, :1, :1]).any(axis=(2, 3, 4))
    assert np.array_equal(drawn, matrix > 0)


def changed(one: Picture, other: Picture) -> NDArray[np.int64]:
    """Rows and columns of the pixels that differ."""
    found: NDArray[np.int64] = np.argwhere((one != other).any(axis=2))
    return found


@pytest.mark.parametrize("classes", [3, 50])
def test_names_stand_at_the_row_and_above_the_column_of_their_class(classes: int) -> None:
    matrix, names = random_matrix(classes), ["the longest name", *names_of(classes - 1)]
    before = confusion_picture(matrix, names)
    (top, _, left, _), side = inside(before), cells(before, classes).shape[2]
    for number in {1, classes // 2, classes - 1}:
        after = confusion_picture(matrix, [*names[:number], "CLASS", *names[number + 1 :]])
        pixels = changed(before, after)
        beside, above = pixels[pixels[:, 0] >= top], pixels[pixels[:, 0] < top]
        assert beside[:, 1].max() < left
        for along in (beside[:, 0] - top, above[:, 1] - left):
            assert np.abs(along - (number + 0.5) * side).max() <= 9


def test_more_classes_than_fifty_have_no_names() -> None:
    matrix = random_matrix(51)
    assert np.array_equal(confusion_picture(matrix, names_of(51)), confusion_picture(matrix, ["other"] * 51))


@pytest.mark.parametrize("name", ["x" * 200, "日本語", "\N{GRINNING FACE}", "ab\u202ecd", "\x1b[2J", " "])
def test_every_name_can_be_drawn(name: str) -> None:
    matrix = np.array([[3, 1], [0, 2]])
    picture = confusion_picture(matrix, [name, "b"])
    assert np.abs(cells(picture, 2)[:, :, 0, 0] - shades(matrix)).max() <= 0.5 + 1e-9
    assert max(picture.shape) < 600


def places(page: Picture, picture: Picture) -> list[list[int]]:
    """The rows and columns at which a picture (H, W, 3) stands on a page."""
    windows = np.lib.stride_tricks.sliding_window_view(page, picture.shape)[:, :, 0]
    corner = (windows[:, :, 0, 0] == picture[0, 0]).all(axis=2)
    return [place for place in np.argwhere(corner).tolist() if (windows[tuple(place)] == picture).all()]


def positions(page: Picture, pictures: Sequence[Picture], factor: int) -> list[tuple[int, int]]:
    """The place of each picture on the page, enlarged by a factor; a grey one as three equal channels."""
    found = []
    for picture in pictures:
        colors = np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else picture
        (place,) = places(page, colors.repeat(factor, axis=0).repeat(factor, axis=1))
        found.append((place[0], place[1]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "factor"), [((8, 9, 3), 10), ((8, 9), 10), ((3, 96, 3), 1), ((1, 1, 3), 96)])
@pytest.mark.parametrize("captions", [True, False])
def test_a_sheet_has_every_picture_in_order_and_enlarged(shape: tuple[int, ...], factor: int, captions: bool) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(5)]
    texts = [("a name", "a name that is longer than its place", "99 %") if captions else ()] * 5
    found = positions(sheet("title", ["note"], pictures, texts, columns=3, side=96), pictures, factor)
    assert found == sorted(found)
    assert len({row for row, _ in found}) == 2
    assert len({row for row, _ in found[:3]}) == 1
    assert [column for _, column in found[3:]] == [column for _, column in found[:2]]


@pytest.mark.slow
def test_a_caption_stands_below_its_picture() -> None:
    pictures = [np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8) for number in range(3)]
    before, after = (
        sheet("title", [], pictures, [["cat"], [name], ["frog"]], columns=2, side=96) for name in ("dog", "owl")
    )
    top, left = positions(before, pictures, 12)[1]
    rows, columns = changed(before, after).T
    assert top + 96 <= rows.min()
    assert rows.max() < top + 96 + 20
    assert left <= columns.min()
    assert columns.max() < left + 136
