"""Image sources. Each is one module of this package, with an `ImageSource` named SOURCE, and one line of MODULES."""

from __future__ import annotations

from importlib import import_module

from ..images import ImageSource

MODULES = (
    "cifar10",
    "cifar100",
    "idx",
    "images",
    "npz",
    "shapes",
)
SOURCES: tuple[ImageSource, ...] = tuple(import_module(f".{name}", __name__).SOURCE for name in MODULES)
