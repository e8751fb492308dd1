"""The data set format, version 2, and its manifest.json.

A data set is a folder:

    manifest.json             written last: a folder without it is not a data set
    train-000-of-008.h5 ...   the training split in S shards
    test-000-of-008.h5 ...    the test split in S shards

For each shard (see dptrain.data.shard) the manifest has its size and SHA-256, the offsets of its arrays in the file,
and a SHA-256 of their contents alone. A reader checks these and reads the arrays without libhdf5.

Version 1 is still read. Its shards were written by libhdf5: chunked, without offsets or a hash of the contents.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from dptrain.data.names import check_names
from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.fields import Bounds, Sha256, from_json
from dptrain.system.paths import dangling
from dptrain.system.text import shown

FORMAT = "dptrain-dataset"
VERSION = 2
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
LARGEST_IMAGE = 1 << 30  # bytes
METADATA = 1 << 16  # most bytes of a shard besides its arrays

Extent = Annotated[int, Bounds(1, LARGEST_IMAGE)]


@dataclass(frozen=True)
class ShardEntry:
    """The manifest's entry for one shard file. Version 1 has neither `offsets` nor `contents_sha256`."""

    file: str
    bytes: int
    samples: int
    sha256: Sha256
    contents_sha256: Sha256 | None = None
    offsets: dict[str, int] | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the images came from: the source `name`, such as cifar10, and the archive's file name and SHA-256.

    `published` states whether that is the SHA-256 of a published archive. Without an archive, all but `name` are None.
    """

    name: str
    archive: str | None = None
    sha256: str | None = None
    published: bool | None = None


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    `mean` and `std` of each channel are over all training pixels, scaled to 0..1. Shard s of a split is
    `splits[split][s]`. `command` has the arguments of the `dptrain data-prep` that packed the set, without the folder,
    --shards and --force; it is empty if a program packed it.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[Extent, Extent, Extent]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: Annotated[int, Bounds(0, 2**64 - 1)]
    source: Provenance
    splits: dict[str, tuple[ShardEntry, ...]]
    version: int = VERSION
    command: tuple[str, ...] = ()

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
        if self.version == 1:
            for entry in (entry for entries in raw["splits"].values() for entry in entries):
                del entry["contents_sha256"], entry["offsets"]
        return json.dumps(raw, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 that identifies the data set: it does not depend on how the data set is stored or was packed.

        Version 1 has no hashes of the contents; there it is the SHA-256 of the manifest's text.
        """
        if self.version == 1:
            return hashlib.sha256(self.to_json().encode()).hexdigest()
        contents = {
            split: [(entry.samples, entry.contents_sha256) for entry in entries]
            for split, entries in self.splits.items()
        }
        facts = {**asdict(self), "splits": contents}
        del facts["version"], facts["command"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def repack_command(self, folder: Path, shards: int) -> str:
        """The command that packs the same images into another number of shards, or advice if it is not known."""
        if not self.command:
            return f"as before, with --shards {shards} --force (in a program: shards={shards}, force=True)"
        source, *options = self.command
        words = ["dptrain", "data-prep", source, str(folder), *options, "--shards", str(shards), "--force"]
        return shown(shlex.join(words))


def shard_name(split: str, shard: int, shards: int) -> str:
    """File name of a shard, for example train-000-of-008.h5."""
    return f"{split}-{shard:03d}-of-{shards:03d}.h5"


def array_forms(samples: int, image_shape: tuple[int, ...]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of each array of a shard."""
    return {
        "images": (np.dtype(np.uint8), (samples, *image_shape)),
        "labels": (np.dtype("<i8"), (samples,)),
        "index": (np.dtype("<i8"), (samples,)),
    }


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
    version = raw.get("version")
    if type(version) is int and version > VERSION:
        raise DataError(
            f"{shown(path)}: data set format version {version}, this program reads versions 1 to {VERSION}: use the "
            "later dptrain that packed it, or pack the data set again with this one"
        )
    try:
        if type(version) is not int or version < 1:
            raise ValueError(f"version is {shown(repr(version), 80)}, expected 1 or {VERSION}")
        manifest = from_json(Manifest, raw)
        _check_manifest(manifest)
    except ValueError as error:
        raise DataError(f"{shown(path)}: damaged or edited: {error}; pack the data set again") from error
    return manifest


def _why_missing(folder: Path) -> str:
    """Why a folder has no manifest, and what to do."""
    advice = f"pack one first, for example: dptrain data-prep cifar10 {shown(shlex.quote(str(folder)))}"
    if why := dangling(folder):
        return why
    if folder.is_dir():
        return f"not a data set: no {MANIFEST} (it is written last: was packing interrupted?); {advice}"
    return "is a file, expected the folder of a packed data set" if folder.exists() else f"no such folder; {advice}"


def _check_manifest(manifest: Manifest) -> None:
    """ValueError unless the parts of a manifest are consistent."""
    channels = manifest.image_shape[0]
    try:
        check_names(manifest.name, manifest.classes)
    except DataError as error:
        raise ValueError(str(error)) from None
    if math.prod(manifest.image_shape) > LARGEST_IMAGE:
        raise ValueError(f"image_shape is {manifest.image_shape}, expected at most {LARGEST_IMAGE:,} bytes")
    if not len(manifest.mean) == len(manifest.std) == channels or min(manifest.std) <= 0:
        raise ValueError(
            f"{len(manifest.mean)} values of mean, {len(manifest.std)} of std, the smallest "
            f"{min(manifest.std, default=0)}; expected {channels} of each, std above 0"
        )
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"the keys of splits are {shown(', '.join(manifest.splits), 80)}; expected train, test")
    for split in SPLITS:
        entries, shards = manifest.splits[split], manifest.shard_count
        wrong = [entry.file for shard, entry in enumerate(entries) if entry.file != shard_name(split, shard, shards)]
        if wrong or not 0 < len(entries) == shards:
            what = f"a shard {shown(repr(wrong[0]), 80)}" if wrong else f"{len(entries)} shards"
            raise ValueError(f"the {split} split has {what}, expected {shard_name(split, 0, shards)} and so on")
        sizes = [entry.samples for entry in entries]
        if not sum(sizes):
            raise ValueError(f"the {split} split has no samples")
        if max(sizes) - min(sizes) > 1:
            raise ValueError(
                f"{split} shards have {min(sizes):,} to {max(sizes):,} samples, expected a difference of at most 1"
            )
        for shard, entry in enumerate(entries):
            _check_entry(entry, f"splits.{split}[{shard}]", manifest)


def _check_entry(entry: ShardEntry, where: str, manifest: Manifest) -> None:
    """ValueError unless the arrays of a shard fit into its file at their offsets."""
    if manifest.version == 1:
        if (entry.offsets, entry.contents_sha256) != (None, None):
            raise ValueError(f"{where} has offsets or contents_sha256, which version 1 does not have")
        return
    forms = array_forms(entry.samples, manifest.image_shape)
    if entry.contents_sha256 is None or set(entry.offsets or ()) != set(forms):
        raise ValueError(f"{where}: expected contents_sha256, and offsets of {', '.join(forms)}")
    offsets = entry.offsets or {}
    # In Python's integers, which do not overflow.
    sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in forms.items()}
    spans = sorted((offsets[name], offsets[name] + size) for name, size in sizes.items())
    ends = [0, *(end for _, end in spans)]
    if any(begin < end for (begin, _), end in zip(spans, ends, strict=False)) or spans[-1][1] > entry.bytes:
        raise ValueError(f"{where}: the arrays of {entry.samples:,} samples overlap, or extend beyond the file")
    if entry.bytes > sum(sizes.values()) + METADATA:
        raise ValueError(f"{where}: {entry.bytes:,} bytes, {entry.samples:,} samples need {sum(sizes.values()):,}")
