"""Draws the confusion matrix, and sheets of small pictures with captions, as pixels.

Each picture is uint8 (H, W, 3) with a background of its own, so that it can be read on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dptrain.report.page.classes import Matrix, colored
from dptrain.report.page.pictures import Picture
from dptrain.system.lettering import INK, LINE, PALE, PAPER, Lettering

MOST_NAMED = 50  # classes of a matrix with names
MATRIX, NAMED_CELL, CELL = 720, (15, 44), (1, 8)  # pixels: about the side of a matrix, and limits of a cell's side
NUMBERED = 30  # pixels: the side of a cell that has room for its percentage
LABEL, MARGIN, GAP, NARROWEST = 150, 10, 8, 540  # pixels; LABEL is for the longest name of a class
DARK = 114  # the luminance of a cell below which its number is white
CAPTION = 136  # pixels: the width of a picture's caption


def confusion_picture(matrix: Matrix, names: Sequence[str]) -> Picture:
    """A matrix (K, K) of samples: rows are true classes, columns predicted ones, in the colors of `colored`.

    Up to `MOST_NAMED` classes have names, and their cells the percentage of the true class if it fits.
    """
    classes, named = len(matrix), len(matrix) <= MOST_NAMED
    cell = int(np.clip(MATRIX // classes, *(NAMED_CELL if named else CELL)))
    notes = ["Rows: true classes. Columns: predicted classes. Blue is right, orange is wrong."]
    notes += ["Numbers: percent of the true class."] if cell >= NUMBERED else []
    label = _label(names) if named else 0
    left, top, side = MARGIN + label, _head(notes) + label, classes * cell
    title = f"Confusion matrix of the test split, {classes:,} classes"
    image, lettering = _page(left + side + MARGIN, top + side + MARGIN, title, notes)
    colors = colored(matrix)
    image.paste(Image.fromarray(colors).resize((side, side), Image.Resampling.NEAREST), (left, top))
    lettering.draw.rectangle((left - 1, top - 1, left + side, top + side), outline=PALE)
    for number, name in enumerate(names if named else ()):
        middle = number * cell + (cell - LINE) // 2
        width = min(label - GAP, lettering.width(name))
        lettering.write((left - GAP // 2 - width, top + middle), name, INK, label - GAP)
        image.paste(_upright(name, label - GAP), (left + middle, top - label + GAP // 2))
    if cell >= NUMBERED:
        _write_shares(lettering, matrix, colors, (left, top), cell)
    return np.asarray(image)


def sheet(
    title: str,
    notes: Sequence[str],
    pictures: Sequence[Picture],
    captions: Sequence[Sequence[str]],
    *,
    columns: int,
    side: int,
) -> Picture:
    """Pictures (H, W) or (H, W, 3) of one size, `columns` in a row, each with its lines of text below it.

    They are enlarged by a whole factor, up to `side` pixels.
    """
    height, width = pictures[0].shape[:2]
    factor = max(1, side // max(height, width))
    size = width * factor, height * factor
    lines = len(captions[0])
    across = max(size[0], CAPTION if lines else 0) + GAP
    down = size[1] + lines * LINE + GAP
    rows = -(-len(pictures) // columns)
    top = _head(notes)
    page = 2 * MARGIN + min(columns, len(pictures)) * across - GAP, top + rows * down - GAP + MARGIN
    image, lettering = _page(*page, title, notes)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        place = MARGIN + column * across, top + row * down
        image.paste(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), place)
        for line, text in enumerate(caption):
            below = place[0], place[1] + size[1] + line * LINE
            lettering.write(below, text, PALE if line else INK, across - GAP)
    return np.asarray(image)


def _head(notes: Sequence[str]) -> int:
    """The height of the title and the notes, with their margins."""
    return 2 * MARGIN + LINE * (1 + len(notes))


def _page(width: int, height: int, title: str, notes: Sequence[str]) -> tuple[Image.Image, Lettering]:
    image = Image.new("RGB", (max(NARROWEST, width), height), PAPER)
    lettering = Lettering(image)
    for number, line in enumerate([title, *notes]):
        place = MARGIN, MARGIN + number * LINE
        lettering.write(place, line, PALE if number else INK, image.width - 2 * MARGIN)
    return image, lettering


def _label(names: Sequence[str]) -> int:
    """Pixels for the longest name."""
    width = Lettering(Image.new("RGB", (1, 1))).width
    return min(LABEL, int(max(map(width, names))) + 1) + GAP


def _upright(text: str, length: int) -> Image.Image:
    """Text that reads upwards, from the lower end of a strip of this length."""
    strip = Image.new("RGB", (length, LINE), PAPER)
    Lettering(strip).write((0, 0), text, INK, length)
    return strip.transpose(Image.Transpose.ROTATE_90)


def _write_shares(lettering: Lettering, matrix: Matrix, colors: Picture, corner: tuple[int, int], cell: int) -> None:
    """The percentage of each cell with samples, in its middle."""
    percentages = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    for row, column in np.argwhere(matrix).tolist():
        share = percentages[row, column]
        text = f"{share:.0f}" if share >= 9.95 else f"{share:.1f}"
        left = corner[0] + column * cell + (cell - lettering.width(text)) / 2
        dark = colors[row, column] @ (0.299, 0.587, 0.114) < DARK
        lettering.write((left, corner[1] + row * cell + (cell - LINE) // 2), text, PAPER if dark else INK, cell)
