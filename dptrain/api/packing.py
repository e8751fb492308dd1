"""Data sets: packed from files or arrays, described, and read back."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dptrain.api.process import all_ranks
from dptrain.data.manifest import Provenance, read_manifest
from dptrain.data.shard import read_shard
from dptrain.data_prep import preview
from dptrain.data_prep.__main__ import make_parser, pack_source
from dptrain.data_prep.arrays import ArrayStream, read_arrays
from dptrain.data_prep.card import card
from dptrain.data_prep.pack import pack as pack_images
from dptrain.data_prep.verify import info, verify
from dptrain.errors import DataError, UsageError
from dptrain.parallel.communicator import together
from dptrain.system.paths import absolute_path
from dptrain.system.text import shown

PathLike = str | os.PathLike[str]
Labelled = tuple[ArrayLike, ArrayLike]  # images and labels
NOT_OPTIONS = {"help", "json", "from", "arrays", "png"}  # flags that the functions have as arguments


class DataSet:
    """A packed data set. A path to one can be given wherever a DataSet is expected.

    Raises DataError if the folder holds no data set.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = absolute_path(folder)
        self._manifest = read_manifest(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self._manifest.samples(split):,} {split}" for split in self.splits)
        return f"<DataSet {shown(self.folder)}: {counts} images, {len(self.classes)} classes>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self._manifest.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W): channels, height and width in pixels."""
        return self._manifest.image_shape

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "test" and, if there is one, "validation"."""
        return self._manifest.split_names

    def arrays(self, split: str = "train") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 (n, C, H, W) and labels int64 (n,) of a split, in the order of the source.

        UsageError for an unknown split, DataError for a damaged shard.
        """
        if split not in self.splits:
            raise UsageError(f"split {shown(repr(split), 60)}: {self.folder} has the splits {', '.join(self.splits)}")
        count = self._manifest.shard_count
        shards = [read_shard(self.folder, self._manifest, split, shard) for shard in range(count)]
        order = np.argsort(np.concatenate([one.index for one in shards]), kind="stable")
        images, labels = (np.concatenate([getattr(one, name) for one in shards]) for name in ("images", "labels"))
        return images[order], labels[order]

    def info(self) -> dict[str, Any]:
        """What `dptrain prep info` prints: counts, mean and deviation, the source, the command, the hash."""
        return info(self.folder)

    def card(self, license: str = "") -> dict[str, Any]:
        """What `dptrain prep card` prints. Every file is checked; DataError for the first problem."""
        return card(self.folder, license)

    def verify(self) -> list[str]:
        """Check every hash and every record; returns the problems."""
        return verify(self.folder).problems

    def preview(self, png: PathLike, **options: Any) -> Path:
        """Draw images of each class, with and without augmentation; returns the path of the picture.

        Options are the flags of `dptrain prep preview`, such as `samples=4` or `augment="reflect"`.
        """
        path = absolute_path(png)
        preview.draw(make_parser().parse_args(["preview", str(self.folder), "--png", str(path), *_flags(options)]))
        return path


def pack(
    source: PathLike | Labelled,
    folder: PathLike,
    *,
    test: Labelled | int | None = None,
    validation: Labelled | None = None,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    **options: Any,
) -> DataSet:
    """Pack images into the shards of a data set in `folder`.

    `source` is a path, as for `dptrain prep PATH OUT`: pictures in a folder for each class, a .npz file, and others. Or
    it is the name of a source, such as "cifar10" or "shapes". Or it is a pair of arrays: images uint8 (n, H, W),
    (n, H, W, C) or (n, C, H, W), and labels, integers (n,).

    `test` and `validation` are more such pairs, for arrays; for "shapes", `test` is a number of images. Without `test`,
    a fifth of each class of the arrays becomes the test split. `classes` are the names of the classes in the order of
    the labels, for arrays or a source with the flag --classes. `name` is the name of a data set of arrays.

    Options are the flags of `dptrain prep`, with _ for -: `shards`, `seed`, `limit`, `validation_fraction`, `force`,
    and those of the source, such as `size=(32, 32)`. For arrays these are `test_fraction` and `layout`.

    In a program that mpirun has started, all ranks call this, and rank 0 packs. Raises UsageError, DataError or
    DownloadError; no files are left then.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UsageError(f"folder is {shown(repr(folder), 80)}, expected a path")
    path = absolute_path(folder)
    with all_ranks() as (communicator, _), together(communicator):
        if communicator.rank == 0:
            _pack(source, str(path), test, validation, classes, name, options)
    return DataSet(path)


def _pack(
    source: PathLike | Labelled,
    folder: str,
    test: Labelled | int | None,
    validation: Labelled | None,
    classes: Sequence[str] | None,
    name: str,
    options: dict[str, Any],
) -> None:
    """`pack`, on one rank."""
    _check_arguments(source, {"test": test, "validation": validation}, classes, options)
    classes = None if classes is None else list(classes)
    if isinstance(source, str | os.PathLike):
        if validation is not None or not (test is None or isinstance(test, int)):
            raise UsageError("test and validation arrays are for a pair of arrays; this source reads its own splits")
        if name != "arrays":
            raise UsageError(f"name is {shown(repr(name), 60)}, but a name is for a pair of arrays: leave it out")
        if wrong := next((one for one in classes or () if "," in one), None):
            raise UsageError(
                f"the class {shown(repr(wrong), 60)} has a comma, expected none in the classes of a path or a source"
            )
        options |= {"test": test, "classes": None if classes is None else ",".join(classes)}
        pack_source(os.fspath(source), folder, *_flags(options))
        return
    if isinstance(test, int):
        raise UsageError(f"test is {test}, expected a pair of arrays as for the training images, or test_fraction=0.2")
    # Arrays take the flags of `dptrain prep npz`.
    parsed = make_parser().parse_args(["npz", folder, "--from", "-", *_flags(options)])
    arrays = dict[str, NDArray[Any]]()
    for split, pair in (("train", source), ("test", test), ("validation", validation)):
        if pair is not None:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UsageError(f"{split}: found {shown(repr(pair), 80)}, expected a pair: images and labels")
            for kind, values in zip(("images", "labels"), pair, strict=True):
                arrays[f"{split}_{kind}"] = _array(f"{split}_{kind}", values)
    if validation is not None and test is None:
        raise UsageError("validation is given without test: pack needs a test split, too")
    parsed.arrays = ",".join(arrays)

    @contextmanager
    def opened(name: str) -> Iterator[ArrayStream]:
        array = arrays[name]
        yield ArrayStream(io.BytesIO(array.tobytes()), array.shape, array.dtype)

    data = read_arrays(name, Provenance("arrays"), list(arrays), opened, parsed)
    if classes is not None:
        data = replace(data, classes=tuple(classes))
    counts = {name: getattr(parsed, name) for name in ("shards", "seed", "limit", "validation_fraction")}
    pack_images(parsed.folder, data, **counts, force=parsed.force)


def _check_arguments(source: object, splits: dict[str, Any], classes: object, options: dict[str, Any]) -> None:
    """UsageError for arguments of another type."""
    if not isinstance(source, str | os.PathLike | tuple | list):
        found = shown(f"{type(source).__name__} {source!r}", 80)
        raise UsageError(f"source is {found}, expected a path, the name of a source, or a pair: images and labels")
    for split, value in splits.items():
        if isinstance(value, float):
            advice = f"for a share use {split}_fraction={value}"
            raise UsageError(f"{split} is {value}, expected a pair of arrays: images and labels; {advice}")
    if isinstance(size := options.get("size"), int):
        raise UsageError(f"size is {size}, expected height and width: size=({size}, {size})")
    if classes is None:
        return
    if not isinstance(classes, list | tuple | np.ndarray) or not all(isinstance(one, str) for one in classes):
        found = shown(repr(classes), 80)
        raise UsageError(f"classes is {found}, expected a list of names in the order of the labels")


def _array(name: str, values: ArrayLike) -> NDArray[Any]:
    """An array of any type and shape; DataError for values that cannot become one, such as lists of several lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        found = shown(f"{type(values).__name__} cannot become an array ({error})", 300)
        raise DataError(f"{name}: this {found}, expected values of one shape and type") from error


def _flags(options: dict[str, Any]) -> list[str]:
    """The words of a command line for options."""
    words: list[str] = []
    if wrong := NOT_OPTIONS & options.keys():
        raise UsageError(f"{min(wrong)} is an argument of the command line, not of this function: leave it out")
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif value is not None and value is not False:
            words.append(f"{flag}={value}")
    return words
