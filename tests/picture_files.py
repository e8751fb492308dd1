"""Small picture files and folders of them for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)


def pixels(height: int = 9, width: int = 7) -> np.ndarray:
    """Random RGB pixels, uint8 (height, width, 3)."""
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """The content of an image file."""
    content = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(content, format, **options)
    return content.getvalue()


def write_pictures(folder: Path, names: list[str]) -> Path:
    """A folder with random pictures 9x7 of these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels()))
    return folder
