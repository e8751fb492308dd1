"""Image sources: each is one module and one line of SOURCES."""

from __future__ import annotations

from ..images import ImageSource
from . import cifar10, shapes

SOURCES: tuple[ImageSource, ...] = (
    cifar10.SOURCE,
    shapes.SOURCE,
)
