"""The data set format, version 3, and its manifest.json.

A data set is a folder:

    manifest.json             written last: a folder without it is not a data set
    train-000-of-008.h5 ...   the training split in S shards
    test-000-of-008.h5 ...    the test split in S shards
    validation-000-of-008.h5  the same for the validation split, which not every data set has

For each shard (see dptrain.data.shard) the manifest has its size and SHA-256, the offsets of its arrays in the file,
and a SHA-256 of their contents alone. Version 2, without a validation split and a preparation, and version 1, also
without offsets and that second hash, are still read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.fields import Bounds, Sha256, from_json
from dptrain.system.paths import dangling
from dptrain.system.text import shown

FORMAT = "dptrain-dataset"
VERSION = 3
MANIFEST = "manifest.json"
SPLITS = ("train", "test", "validation")
REQUIRED = SPLITS[:2]
LARGEST_IMAGE = 1 << 30  # bytes
METADATA = 1 << 16  # most bytes of a shard besides its arrays
LONGEST_NAME = 200  # characters
REFUSED = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # HDF5 cannot hold NUL or a lone surrogate

Extent = Annotated[int, Bounds(1, LARGEST_IMAGE)]
Fit = Literal["crop", "squash", "pad"]
ImageShape = tuple[Extent, Extent, Extent]


@dataclass(frozen=True)
class Offsets:
    """Where the arrays of a shard begin in its file."""

    images: int
    labels: int
    index: int


@dataclass(frozen=True)
class ShardEntry:
    """The manifest's entry for one shard file. Version 1 has neither `offsets` nor `contents_sha256`."""

    file: str
    bytes: int
    samples: int
    sha256: Sha256
    contents_sha256: Sha256 | None = None
    offsets: Offsets | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the images came from: the source `name`, such as cifar10, and the archive's file name and SHA-256, if any.

    `published` states whether that is the SHA-256 of a published archive; it is None where no archive is published.
    """

    name: str
    archive: str | None = None
    sha256: str | None = None
    published: bool | None = None


@dataclass(frozen=True)
class Preparation:
    """How image files became images of one size.

    `decoder` is the program that decoded them, with its version, and `fit` how another aspect ratio was handled: crop,
    squash or pad. `broken` files were left out. The others had this number of different `sizes`, and `smallest` and
    `largest` (height, width) are the first and the last of them in order.
    """

    decoder: str
    fit: Fit
    broken: Annotated[int, Bounds(0, LARGEST_IMAGE)]
    sizes: Annotated[int, Bounds(1, LARGEST_IMAGE)]
    smallest: tuple[Extent, Extent]
    largest: tuple[Extent, Extent]


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    `mean` and `std` of each channel are over all training pixels, scaled to 0..1. Shard s of a split is
    `splits[split][s]`. `command` has the arguments of the `dptrain prep` that packed the set, without the folder,
    --shards and --force; it is empty if a program packed it. `preparation` is that of image files.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: Annotated[int, Bounds(0, 2**64 - 1)]
    source: Provenance
    splits: dict[str, tuple[ShardEntry, ...]]
    version: Annotated[int, Bounds(1, VERSION)] = VERSION
    command: tuple[str, ...] = ()
    preparation: Preparation | None = None

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that the data set has, in the order of SPLITS."""
        return tuple(split for split in SPLITS if split in self.splits)

    @property
    def shard_count(self) -> int:
        return len(self.splits["train"])

    def samples(self, split: str) -> int:
        """Samples of a split, all shards together."""
        return sum(entry.samples for entry in self.splits[split])

    def to_json(self) -> str:
        """The text of manifest.json: the same contents always give the same bytes."""
        raw = {"format": FORMAT, "version": self.version, **asdict(self)}
        if not self.command:
            del raw["command"]
        if self.preparation is None:
            del raw["preparation"]
        for entry in (entry for entries in raw["splits"].values() for entry in entries if self.version == 1):
            del entry["contents_sha256"], entry["offsets"]
        return json.dumps(raw, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 that identifies the data set: it does not depend on how the data set is stored or was packed.

        Version 1 has no hashes of the contents; there it is the SHA-256 of the manifest's text.
        """
        if self.version == 1:
            return hashlib.sha256(self.to_json().encode()).hexdigest()
        facts = asdict(self)
        del facts["version"], facts["command"], facts["preparation"]
        for split, entries in self.splits.items():
            facts["splits"][split] = [(entry.samples, entry.contents_sha256) for entry in entries]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def repack_command(self, folder: Path, shards: int) -> str:
        """The command that packs the same images into another number of shards, or advice if it is not known."""
        if not self.command:
            return f"as before, with --shards {shards} --force (in a program: shards={shards}, force=True)"
        return f"{self.pack_command(folder, shards)} --force"

    def pack_command(self, folder: Path, shards: int) -> str:
        """The command that packs the same images into this number of shards, where `command` is known."""
        source, *options = self.command
        return shown(shlex.join(["dptrain", "prep", source, str(folder), *options, "--shards", str(shards)]))


def shard_name(split: str, shard: int, shards: int) -> str:
    """File name of a shard, for example train-000-of-008.h5."""
    return f"{split}-{shard:03d}-of-{shards:03d}.h5"


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a data set folder; raises DataError."""
    path = Path(folder) / MANIFEST
    try:
        raw = files.parse_json(files.read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{shown(folder)}: {_why_missing(Path(folder))}") from None
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{shown(path)}: cannot be read as JSON: {error}; pack the data set again") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise DataError(f'{shown(path)}: not a dptrain manifest: expected "format": "{FORMAT}"')
    version = raw.setdefault("version", None)
    if isinstance(version, int) and version > VERSION:
        raise DataError(
            f"{shown(path)}: data set format version {shown(version, 80)}, this program reads versions 1 to {VERSION}: "
            "use the later dptrain that packed it, or pack the data set again with this one"
        )
    try:
        manifest = from_json(Manifest, raw)
        _check(manifest)
    except (ValueError, DataError) as error:
        raise DataError(f"{shown(path)}: damaged or edited: {error}; pack the data set again") from error
    return manifest


def _why_missing(folder: Path) -> str:
    """Why a folder has no manifest, and what to do."""
    if why := dangling(folder):
        return why
    if not folder.exists():
        why = "no such folder"
    elif not folder.is_dir():
        return "is a file, expected the folder of a packed data set"
    elif any(folder.glob("[!.]*")):
        return f"not a data set: no {MANIFEST}; give the folder of a packed data set"
    else:
        why = f"not a data set: no {MANIFEST} (was packing interrupted?)"
    return f"{why}; pack one first, for example: dptrain prep cifar10 {shown(shlex.quote(str(folder)))}"


def _check(manifest: Manifest) -> None:
    """ValueError or DataError unless the parts of a manifest are consistent."""
    check_names(manifest.name, manifest.classes)
    check_images(manifest.image_shape, manifest.mean, manifest.std)
    if not set(REQUIRED) <= set(manifest.splits) <= set(SPLITS):
        found = shown(", ".join(manifest.splits), 80)
        raise ValueError(f"the keys of splits are {found}; expected train, test and perhaps validation")
    shards = manifest.shard_count
    for split, entries in manifest.splits.items():
        names = [shard_name(split, shard, shards) for shard in range(shards)]
        if [entry.file for entry in entries] != names or not names:
            raise ValueError(f"the {split} split: expected the shards {shard_name(split, 0, shards or 1)} and so on")
        sizes = [entry.samples for entry in entries]
        if max(sizes) - min(sizes) > 1 or not max(sizes):
            raise ValueError(
                f"{split} shards have {min(sizes):,} to {max(sizes):,} samples, expected a difference of at most 1, "
                "and a sample"
            )
        for entry in entries:
            old = manifest.version == 1
            if (entry.offsets is None) != old or (entry.contents_sha256 is None) != old:
                raise ValueError(
                    f"{entry.file}: offsets and contents_sha256 belong to version 2 and later, and to these only"
                )
            needed = entry.samples * (math.prod(manifest.image_shape) + 16)
            if not old and entry.bytes > needed + METADATA:
                raise ValueError(f"{entry.file}: {entry.bytes:,} bytes, {entry.samples:,} samples need {needed:,}")


def check_images(shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> None:
    """ValueError unless images (C, H, W) are not too large, with a mean and a positive deviation for each channel."""
    if math.prod(shape) > LARGEST_IMAGE:
        raise ValueError(f"image_shape is {shape}, expected at most {LARGEST_IMAGE:,} bytes")
    if not len(mean) == len(std) == shape[0] or min(std) <= 0:
        raise ValueError(f"mean and std are {mean[:9]} and {std[:9]}, expected {shape[0]} values of each, std above 0")


def check_names(name: object, classes: Sequence[object]) -> None:
    """DataError unless these are valid names of a data set and of its classes.

    Class names must differ after Unicode normalisation, because normalised names look the same. Names may differ in
    case only: the letters a and A may be two classes.
    """
    if isinstance(classes, str) or not classes:
        raise DataError(f"classes are {shown(repr(classes), 60)}, expected a list of one or more names")
    for what, text in (("the data set", name), *((f"class {number}", text) for number, text in enumerate(classes))):
        valid = isinstance(text, str) and 0 < len(text) <= LONGEST_NAME and text == text.strip()
        if not valid or REFUSED.search(str(text)):
            raise DataError(
                f"the name of {what} is {shown(repr(text), 260)}, expected text of 1 to {LONGEST_NAME} characters "
                "without control characters, line separators, lone surrogates, and spaces at the beginning or end"
            )
    first_with: dict[str, int] = {}
    for number, text in enumerate(classes):
        first = first_with.setdefault(unicodedata.normalize("NFC", str(text)), number)
        if first != number:
            raise DataError(f"classes {first} and {number} have the same name, {shown(text)!r}; rename one")
