"""Image sources. Each is one module of this package, with an `ImageSource` named SOURCE, and one line of MODULES."""

from __future__ import annotations

from importlib import import_module

from ..images import ImageSource

MODULES = (  # in the order in which they are asked whether they can read a path
    "cifar10",
    "cifar100",
    "csv",
    "hdf5",
    "idx",
    "npy",
    "npz",
    "images",
    "shapes",
)
SOURCES: tuple[ImageSource, ...] = tuple(import_module(f".{name}", __name__).SOURCE for name in MODULES)
