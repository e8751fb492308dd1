"""The data set format, version 2: one module for the program that writes it and the one that reads it.

A data set is a folder:

    manifest.json             written last, so a folder without it is not a data set
    train-000-of-008.h5 ...   the training split in S shards
    test-000-of-008.h5 ...    the test split in as many

and a shard is a plain HDF5 file (see dptrain.system.hdf5):

    images  uint8 (n, C, H, W)
    labels  int64 (n,), 0 <= label < K
    index   int64 (n,), the sample's number in its source, at least 0
    attributes: format, version, split, shard, shards

For every shard the manifest has its size and SHA-256, the offsets of the three arrays in the file, and a SHA-256 of
their contents alone. A reader checks these and takes the arrays from where they lie; libhdf5 takes no part in it.

Version 1, which libhdf5 wrote (chunked, fletcher32, no offsets and no hash of the contents), is still read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.names import check_names
from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.fields import LARGEST, Fields
from dptrain.system.hdf5 import plain_hdf5
from dptrain.system.old_hdf5 import TooNewError, read_isolated
from dptrain.system.paths import dangling
from dptrain.system.text import shown

FORMAT = "dptrain-dataset"
VERSION = 2
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
SHARD_ATTRIBUTES = ("format", "version", "split", "shard", "shards")
ARRAYS = ("images", "labels", "index")
LARGEST_IMAGE = 1 << 30  # bytes
METADATA = 1 << 16  # bytes of a shard beside its arrays, at most
REPAIR = "restore it from where it came, or pack the data set again"


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one shard file. In version 1, `offsets` and `contents_sha256` are not known (None)."""

    file: str
    bytes: int
    samples: int
    sha256: str
    contents_sha256: str | None = None
    offsets: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Source:
    """Where the images came from. `published` is None where no published checksum exists."""

    name: str
    archive: str | None
    sha256: str | None
    published: bool | None


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    `mean` and `std` are per channel, over all pixels of the training split, of pixel values scaled to
    0..1. Shard s of a split is `splits[split][s]`.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    source: Source
    splits: dict[str, tuple[ShardEntry, ...]]
    version: int = VERSION

    @property
    def shard_count(self) -> int:
        return len(self.splits["train"])

    def samples(self, split: str) -> int:
        """Samples of a split, all shards together."""
        return sum(entry.samples for entry in self.splits[split])

    def to_json(self) -> str:
        """The text of manifest.json: the same contents always give the same bytes."""
        raw = {"format": FORMAT, "version": self.version, **asdict(self)}
        if self.version == 1:
            for entry in (entry for entries in raw["splits"].values() for entry in entries):
                del entry["contents_sha256"], entry["offsets"]
        return json.dumps(raw, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 that identifies the data set: of everything in it but how its files are stored.

        For version 1, which has no hashes of the contents, that of the manifest's text.
        """
        if self.version == 1:
            return hashlib.sha256(self.to_json().encode()).hexdigest()
        contents = {
            split: [(entry.samples, entry.contents_sha256) for entry in entries]
            for split, entries in self.splits.items()
        }
        facts = {**asdict(self), "splits": contents}
        del facts["version"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def shard_name(split: str, shard: int, shards: int) -> str:
    """File name of a shard, for example train-000-of-008.h5."""
    return f"{split}-{shard:03d}-of-{shards:03d}.h5"


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a data set folder; raises DataError."""
    path = Path(folder) / MANIFEST
    place = shown(path)
    try:
        raw = files.parse_json(files.read_text(path))
    except FileNotFoundError:
        if why := dangling(Path(folder)):
            raise DataError(f"{shown(folder)}: {why}") from None
        if not Path(folder).is_dir():
            raise DataError(
                f"{shown(folder)}: there is no such folder; dptrain data-prep cifar10 {shown(folder)} packs one"
            ) from None
        raise DataError(
            f"{shown(folder)}: not a data set: there is no {MANIFEST} (it is written last, so packing may have been "
            f"interrupted); pack one with: dptrain data-prep cifar10 {shown(folder)}"
        ) from None
    except NotADirectoryError:
        raise DataError(f"{shown(folder)}: is a file, expected the folder of a packed data set") from None
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{place}: cannot be read as JSON: {error}; pack the data set again") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f'{place}: not a dptrain manifest: expected "format": "{FORMAT}"')
    version = raw.get("version")
    if type(version) is int and version > VERSION:
        raise DataError(
            f"{place}: data set format version {version}, this program reads versions 1 to {VERSION}: a later dptrain "
            "packed it; use that one, or pack the data set again with this program's data_prep"
        )
    try:
        return _manifest_of(Fields(raw))
    except ValueError as error:
        raise DataError(f"{place}: damaged or edited: {error}; pack the data set again") from error


def _manifest_of(raw: Fields) -> Manifest:
    """A Manifest from parsed JSON; ValueError when something does not fit."""
    version = raw.choice("version", *range(1, VERSION + 1))
    raw.only(("format", "version", "name", "classes", "image_shape", "mean", "std", "seed", "source", "splits"))
    image_shape = raw.wholes("image_shape", 1, LARGEST_IMAGE)
    if len(image_shape) != 3 or math.prod(image_shape) > LARGEST_IMAGE:
        raise ValueError(f"image_shape is {image_shape[:9]}, expected (C, H, W) of at most {LARGEST_IMAGE:,} bytes")
    splits = raw.fields("splits").only(SPLITS)
    source = raw.fields("source").only(("name", "archive", "sha256", "published"))
    manifest = Manifest(
        name=raw.text("name"),
        classes=raw.texts("classes"),
        image_shape=image_shape,
        mean=raw.numbers("mean"),
        std=raw.numbers("std"),
        seed=raw.whole("seed", most=2**64 - 1),
        source=Source(
            name=source.text("name"),
            archive=None if source.raw["archive"] is None else source.text("archive"),
            sha256=None if source.raw["sha256"] is None else source.text("sha256"),
            published=source.choice("published", True, False, None),
        ),
        splits={
            split: tuple(_entry_of(entry, version, image_shape) for entry in splits.list_of_fields(split))
            for split in SPLITS
        },
        version=version,
    )
    _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    """ValueError unless the parts of a manifest fit each other."""
    channels, classes = manifest.image_shape[0], manifest.classes
    try:
        check_names(manifest.name, classes)
    except DataError as error:
        raise ValueError(str(error)) from None
    if not len(manifest.mean) == len(manifest.std) == channels or min(manifest.std) <= 0:
        raise ValueError(
            f"{len(manifest.mean)} numbers of mean, {len(manifest.std)} of std from {min(manifest.std, default=0)} up, "
            f"expected {channels} of each, std above 0"
        )
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
            raise ValueError(f"{split} shards have {min(sizes):,} to {max(sizes):,} samples, expected +-1")


def _entry_of(raw: Fields, version: int, image_shape: tuple[int, ...]) -> ShardEntry:
    """One shard's entry; ValueError unless arrays of its number of samples fit into its bytes at its offsets."""
    more = () if version == 1 else ("contents_sha256", "offsets")
    raw.only(("file", "bytes", "samples", "sha256", *more))
    entry = ShardEntry(raw.text("file"), raw.whole("bytes"), raw.whole("samples"), raw.sha256("sha256"))
    if version == 1:
        return entry
    offsets = raw.fields("offsets").only(ARRAYS)
    found = {name: offsets.whole(name, most=LARGEST) for name in ARRAYS}
    sizes = {name: _size(*form) for name, form in _forms(entry.samples, image_shape).items()}
    spans = sorted((found[name], found[name] + sizes[name]) for name in ARRAYS)
    ends = [0, *(end for _, end in spans)]
    if any(begin < end for (begin, _), end in zip(spans, ends, strict=False)) or spans[-1][1] > entry.bytes:
        raise ValueError(f"{raw.where}: the arrays of {entry.samples:,} samples overlap, or end behind the file")
    if entry.bytes > sum(sizes.values()) + METADATA:
        raise ValueError(f"{raw.where}: {entry.bytes:,} bytes, {entry.samples:,} samples need {sum(sizes.values()):,}")
    return ShardEntry(entry.file, entry.bytes, entry.samples, entry.sha256, raw.sha256("contents_sha256"), found)


@dataclass(frozen=True)
class Samples:
    """Images uint8 (n, C, H, W), labels int64 (n,) and index int64 (n,), row by row the same sample.

    What was read from a file cannot be written to.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """SHA-256 of names, types, shapes and contents of the three arrays, however they are stored."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def _forms(samples: int, image_shape: tuple[int, ...]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of each array of a shard."""
    return {
        "images": (np.dtype(np.uint8), (samples, *image_shape)),
        "labels": (np.dtype("<i8"), (samples,)),
        "index": (np.dtype("<i8"), (samples,)),
    }


def _size(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Bytes of an array, in Python's whole numbers, which do not overflow."""
    return dtype.itemsize * math.prod(shape)


def write_shard(path: Path, samples: Samples, split: str, shard: int, shards: int) -> ShardEntry:
    """Write one shard and describe it; OSError when the file cannot be written.

    The same samples give the same `contents_sha256`. The bytes of the file depend on the version of HDF5, and those
    that h5py 3.11 writes also hold the time.
    """
    attributes: dict[str, str | int] = dict(zip(SHARD_ATTRIBUTES, (FORMAT, VERSION, split, shard, shards), strict=True))
    content, offsets = plain_hdf5({name: getattr(samples, name) for name in ARRAYS}, attributes)
    Path(path).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardEntry(Path(path).name, len(content), len(samples), digest, samples.sha256, offsets)


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with files.open_regular(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_proven(folder: Path, entry: ShardEntry) -> bytes:
    """A shard file's bytes, after their number and SHA-256 were held to the manifest; DataError naming the file."""
    path = shown(Path(folder) / entry.file)
    try:
        with files.open_regular(Path(folder) / entry.file) as file:
            size = files.size_of(file)
            if size != entry.bytes:
                raise DataError(
                    f"{path}: {size:,} bytes, the manifest says {entry.bytes:,}: truncated or replaced; {REPAIR}"
                )
            content = files.read_whole(file)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {REPAIR}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {REPAIR}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise DataError(f"{path}: SHA-256 {found[:16]}..., the manifest says {entry.sha256[:16]}...: altered; {REPAIR}")
    return content


def read_shard(folder: Path, manifest: Manifest, split: str, shard: int) -> Samples:
    """Check one shard file against the manifest, then read it; raises DataError. The arrays cannot be written to."""
    entry = manifest.splits[split][shard]
    path = shown(Path(folder) / entry.file)
    content = read_proven(folder, entry)
    forms = _forms(entry.samples, manifest.image_shape)
    if entry.offsets is None:
        try:
            arrays = _read_version_1(content, forms, (FORMAT, 1, split, shard, manifest.shard_count))
        except TooNewError as error:
            raise DataError(f"{path}: {error}") from error
        except ValueError as error:
            raise DataError(f"{path}: not a readable shard: {error}; {REPAIR}") from error
    else:
        arrays = {
            name: np.frombuffer(content, dtype, math.prod(shape), entry.offsets[name]).reshape(shape)
            for name, (dtype, shape) in forms.items()
        }
    samples = Samples(arrays["images"], arrays["labels"], arrays["index"])
    if entry.contents_sha256 not in (None, samples.sha256):
        raise DataError(f"{path}: the images, labels and index do not have the hash that the manifest states; {REPAIR}")
    labels, index = samples.labels, samples.index
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(manifest.classes):
        raise DataError(
            f"{path}: labels from {labels.min()} to {labels.max()}, the manifest has {len(manifest.classes)} classes "
            f"(0 to {len(manifest.classes) - 1})"
        )
    if len(index) and index.min() < 0:
        raise DataError(f"{path}: index from {index.min()}, expected numbers of at least 0")
    return samples


def _read_version_1(
    content: bytes, forms: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], expected: tuple[str | int, ...]
) -> dict[str, NDArray[Any]]:
    """The arrays of a shard that libhdf5 wrote; ValueError when they are not what they should be."""
    attributes, arrays = read_isolated(content)
    if attributes != dict(zip(SHARD_ATTRIBUTES, expected, strict=True)) or set(arrays) != set(forms):
        raise ValueError(
            f"it holds {shown(sorted(arrays), 200)} with attributes {shown(attributes, 200)}, expected {sorted(forms)} "
            f"with {dict(zip(SHARD_ATTRIBUTES, expected, strict=True))}"
        )
    for name, (dtype, shape) in forms.items():
        if (arrays[name].dtype, arrays[name].shape) != (dtype, shape):
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, expected {dtype} {shape}")
    return arrays
