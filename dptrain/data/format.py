"""The data set format, version 1: one module for the program that writes it and the one that reads it.

A data set is a folder:

    manifest.json             written last, so a folder without it is not a data set
    train-000-of-008.h5 ...   the training split in S shards
    test-000-of-008.h5 ...    the test split in as many

and a shard is an HDF5 file (libver "latest", whose headers carry checksums):

    images  uint8 (n, C, H, W), chunked by samples, fletcher32
    labels  int64 (n,), 0 <= label < K, fletcher32
    index   int64 (n,), the sample's number in its source, fletcher32
    attributes: format, version, split, shard, shards

HDF5's own checksums miss most single-bit flips of a file, so the manifest keeps the SHA-256 of every
shard and a reader checks it before libhdf5 sees the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dptrain.data.names import check_names
from dptrain.errors import DataError
from dptrain.system.paths import dangling
from dptrain.system.text import shown

FORMAT = "dptrain-dataset"
VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
SHARD_ATTRIBUTES = ("format", "version", "split", "shard", "shards")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one shard file."""

    file: str
    bytes: int
    samples: int
    sha256: str


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

    @property
    def shard_count(self) -> int:
        return len(self.splits["train"])

    def samples(self, split: str) -> int:
        """Samples of a split, all shards together."""
        return sum(entry.samples for entry in self.splits[split])

    def to_json(self) -> str:
        """The text of manifest.json: the same contents always give the same bytes."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest; as it contains every shard's, it identifies the whole data set."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def shard_name(split: str, shard: int, shards: int) -> str:
    """File name of a shard, for example train-000-of-008.h5."""
    return f"{split}-{shard:03d}-of-{shards:03d}.h5"


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a data set folder; raises DataError."""
    path = Path(folder) / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if why := dangling(Path(folder)):
            raise DataError(f"{shown(folder)}: {why}") from None
        if not Path(folder).is_dir():
            raise DataError(
                f"{folder}: there is no such folder; dptrain data-prep cifar10 {folder} packs one"
            ) from None
        raise DataError(
            f"{folder}: not a data set: there is no {MANIFEST} (it is written last, so packing may have been "
            f"interrupted); pack one with: dptrain data-prep cifar10 {folder}"
        ) from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file, expected the folder of a packed data set") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f'{path}: not a dptrain manifest: expected "format": "{FORMAT}"')
    if raw.get("version") != VERSION:
        raise DataError(
            f"{path}: data set format version {raw.get('version')!r}, this program reads version {VERSION}; "
            "pack the data set again with this program's data_prep"
        )
    try:
        manifest = _manifest_of(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}; pack the data set again") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: damaged or edited: {found}; pack the data set again") from error
    return manifest


def _manifest_of(raw: dict[str, Any]) -> Manifest:
    """A Manifest from parsed JSON; KeyError, TypeError or ValueError when something does not fit."""
    fields = {"format", "version", "name", "classes", "image_shape", "mean", "std", "seed", "source", "splits"}
    if set(raw) != fields:
        raise ValueError(f"keys {sorted(raw)}, expected {sorted(fields)}")
    if set(raw["splits"]) != set(SPLITS):
        raise ValueError(f"splits {sorted(raw['splits'])}, expected {sorted(SPLITS)}")
    splits = {split: tuple(ShardEntry(**entry) for entry in raw["splits"][split]) for split in SPLITS}
    channels, height, width = (int(extent) for extent in raw["image_shape"])
    manifest = Manifest(
        name=str(raw["name"]),
        classes=tuple(str(name) for name in raw["classes"]),
        image_shape=(channels, height, width),
        mean=tuple(float(value) for value in raw["mean"]),
        std=tuple(float(value) for value in raw["std"]),
        seed=int(raw["seed"]),
        source=Source(**raw["source"]),
        splits=splits,
    )
    if min(manifest.image_shape) < 1 or not manifest.classes:
        raise ValueError(f"image_shape {manifest.image_shape}, {len(manifest.classes)} classes, expected at least 1")
    check_names(manifest.name, manifest.classes)
    if not len(manifest.mean) == len(manifest.std) == channels or not all(
        math.isfinite(mean) and 0 < std < math.inf for mean, std in zip(manifest.mean, manifest.std, strict=True)
    ):
        raise ValueError(f"mean {manifest.mean}, std {manifest.std}, expected {channels} of each, finite, std above 0")
    shards = manifest.shard_count
    for split in SPLITS:
        names = [entry.file for entry in splits[split]]
        expected = [shard_name(split, shard, shards) for shard in range(shards)]
        if not shards or names != expected:
            raise ValueError(f"{split} shards {names}, expected {expected}")
        if manifest.samples(split) < 1:
            raise ValueError(f"the {split} split has no samples")
        for entry in splits[split]:
            if entry.samples < 0 or entry.bytes < 0 or len(bytes.fromhex(entry.sha256)) != 32:
                raise ValueError(f"entry of {entry.file}: {entry}")
    return manifest


@dataclass(frozen=True)
class Samples:
    """Images uint8 (n, C, H, W), labels int64 (n,) and index int64 (n,), row by row the same sample."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def write_shard(path: Path, samples: Samples, split: str, shard: int, shards: int) -> None:
    """Write one shard; OSError when the file cannot be written.

    The same samples give the same bytes: no times or names of the machine are stored. The file is made in
    memory first: libhdf5 crashes the process on exit when a disk was full under it, Python only raises.
    """
    rows = max(1, min(len(samples), CHUNK_BYTES // max(1, samples.images[:1].nbytes)))
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        for name, array in (("images", samples.images), ("labels", samples.labels), ("index", samples.index)):
            # An empty shard has nothing to chunk or to check.
            storage = {"chunks": (rows, *array.shape[1:]), "fletcher32": True} if len(samples) else {}
            file.create_dataset(name, data=array, **storage)
        for name, value in zip(SHARD_ATTRIBUTES, (FORMAT, VERSION, split, shard, shards), strict=True):
            file.attrs[name] = value
    Path(path).write_bytes(content.getbuffer())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_proven(folder: Path, entry: ShardEntry) -> bytes:
    """A shard file's bytes, after their number and SHA-256 were held to the manifest; DataError naming the file."""
    path = Path(folder) / entry.file
    repair = "restore it from where it came, or pack the data set again"
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise DataError(
                f"{path}: {size:,} bytes, the manifest says {entry.bytes:,}: truncated or replaced; {repair}"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {repair}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise DataError(f"{path}: SHA-256 {found[:16]}..., the manifest says {entry.sha256[:16]}...: altered; {repair}")
    return content


def read_shard(folder: Path, manifest: Manifest, split: str, shard: int) -> Samples:
    """Check one shard file against the manifest, then read it; raises DataError.

    Names, kinds of storage, dtypes and shapes are checked before a byte of data is read: a file with
    soft, external or virtual parts could make the reader open other files.
    """
    entry = manifest.splits[split][shard]
    path = Path(folder) / entry.file
    content = read_proven(folder, entry)
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "images": (np.dtype(np.uint8), (entry.samples, *manifest.image_shape)),
        "labels": (np.dtype(np.int64), (entry.samples,)),
        "index": (np.dtype(np.int64), (entry.samples,)),
    }
    attributes = dict(zip(SHARD_ATTRIBUTES, (FORMAT, VERSION, split, shard, manifest.shard_count), strict=True))
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            if set(file) != set(expected) or dict(file.attrs) != attributes:
                raise DataError(
                    f"{path}: holds {sorted(file)} with attributes {dict(file.attrs)}, expected {sorted(expected)} "
                    f"with {attributes}"
                )
            arrays = {name: _read_plain(file, name, *expected[name]) for name in expected}
    except DataError:
        raise
    except Exception as error:  # whatever a forged file makes libhdf5 raise
        raise DataError(f"{path}: not a readable shard: {error}") from error
    labels = arrays["labels"]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(manifest.classes):
        raise DataError(
            f"{path}: labels from {labels.min()} to {labels.max()}, the manifest has {len(manifest.classes)} classes "
            f"(0 to {len(manifest.classes) - 1})"
        )
    return Samples(arrays["images"], labels, arrays["index"])


def _read_plain(file: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """The array of a dataset that is stored in this very file under a hard link."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link to elsewhere, which a shard never has")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{name} is not stored in the file itself, which a shard's data always is")
    if dataset.dtype != dtype or dataset.shape != shape:
        raise ValueError(f"{name} is {dataset.dtype} {dataset.shape}, expected {dtype} {shape}")
    return dataset[()]
