"""Draws rows of images with labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptrain.data.transforms import Images
from dptrain.errors import UsageError
from dptrain.system.lettering import INK, LINE, PALE, PAPER, Lettering

SMALL, LARGE = 64, 128  # smaller images are enlarged by a whole factor, larger ones are reduced
MARGIN, GAP, LABEL = 10, 3, 120  # pixels; LABEL is the width of the labels
NARROWEST, MOST_PIXELS = 520, 50_000_000  # of a sheet


@dataclass(frozen=True)
class Row:
    """A label, the image of the first column (1, C, H, W) or none, and more images (n, C, H, W)."""

    label: str
    first: Images
    images: Images
    augmented: bool = False


def sheet_size(image_shape: tuple[int, ...], columns: int, rows: int, groups: int, notes: int = 2) -> tuple[int, int]:
    """Width and height of a sheet in pixels; UsageError if it is too large. Each of the `groups` of rows has a gap."""
    height, width = _tile(*image_shape[1:])
    size = (
        max(NARROWEST, 3 * MARGIN + LABEL + columns * (width + GAP)),
        _head(notes) + groups * MARGIN + rows * _pitch(height) + MARGIN,
    )
    if size[0] * size[1] > MOST_PIXELS:
        raise UsageError(
            f"the sheet would have {size[0]:,} x {size[1]:,} pixels: use fewer --samples, --classes or --epochs"
        )
    return size


def _head(notes: int) -> int:
    """The height of the title and the notes."""
    return 2 * MARGIN + (1 + notes) * LINE


def _pitch(height: int) -> int:
    """The height of a row with images of a height."""
    return max(height, LINE) + GAP


def _tile(height: int, width: int) -> tuple[int, int]:
    """Height and width of an image on the sheet."""
    larger = max(height, width)
    if larger <= LARGE:
        factor = max(1, SMALL // larger)
        return height * factor, width * factor
    return max(1, round(height * LARGE / larger)), max(1, round(width * LARGE / larger))


def draw_sheet(title: str, notes: Sequence[str], rows: Sequence[Row]) -> tuple[bytes, tuple[int, int]]:
    """The content of a PNG file, and its width and height in pixels. All images have the same shape."""
    height, width = _tile(*rows[0].first.shape[2:])
    columns = 1 + max(len(row.images) for row in rows)
    groups = sum(not row.augmented for row in rows)
    size = sheet_size(rows[0].first.shape[1:], columns, len(rows), groups, len(notes))
    sheet = Image.new("RGB", size, PAPER)
    write = Lettering(sheet).write
    for number, line in enumerate([title, *notes]):
        write((MARGIN, MARGIN + number * LINE), line, PALE if number else INK, size[0] - 2 * MARGIN)
    top = _head(len(notes))
    for row in rows:
        top += 0 if row.augmented else MARGIN
        write((MARGIN, top + (height - LINE) // 2), row.label, PALE if row.augmented else INK, LABEL - GAP)
        for column, image in enumerate([*row.first, *row.images], 1 - len(row.first)):
            picture = Image.fromarray(_rgb(image)).resize((width, height), _filter(image, height))
            sheet.paste(picture, (MARGIN + LABEL + column * (width + GAP) + MARGIN * (column > 0), top))
        top += _pitch(height)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue(), size


def _filter(image: Images, height: int) -> Image.Resampling:
    """Enlarged images show their pixels; reduced ones are averaged."""
    return Image.Resampling.BOX if height < image.shape[1] else Image.Resampling.NEAREST


def _rgb(image: Images) -> NDArray[np.uint8]:
    """An image (C, H, W) as (H, W, 3): gray from one or two channels, else the first three."""
    channels = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
    return np.ascontiguousarray(channels.transpose(1, 2, 0))
