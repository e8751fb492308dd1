"""One shard of a data set: its file, and its samples in memory.

The file is plain HDF5 (see dptrain.system.hdf5):

    images  uint8 (n, C, H, W)
    labels  int64 (n,), 0 <= label < K
    index   int64 (n,), the sample's number in its source, at least 0
    attributes: format, version, split, shard, shards
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import FORMAT, VERSION, Manifest, Offsets, ShardEntry
from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.hdf5 import plain_arrays, plain_file
from dptrain.system.old_hdf5 import read_isolated
from dptrain.system.text import shown

FORMS = {"images": "|u1", "labels": "<i8", "index": "<i8"}  # types of the arrays
ARRAYS = tuple(FORMS)
ATTRIBUTES = ("format", "version", "split", "shard", "shards")
REPAIR = "restore it from a copy, or pack the data set again"
BLOCK = 4 << 20  # bytes of images that are written at a time


@dataclass(frozen=True)
class Samples:
    """Images uint8 (n, C, H, W), labels int64 (n,) and index int64 (n,); row i of each belongs to sample i.

    Arrays read from a file are read-only.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """SHA-256 of names, types, shapes and contents of the three arrays."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            array = getattr(self, name)
            digest.update(_header(name, array))
            for block in _blocks(array):
                digest.update(block)
        return digest.hexdigest()


def _header(name: str, array: Any) -> bytes:
    return f"{name} {FORMS[name]} {array.shape}\n".encode()


def _blocks(array: Any) -> Iterator[memoryview]:
    """The bytes of an array, a block of rows at a time."""
    rows = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data


class StoredImages(Protocol):
    """Images uint8 (n, C, H, W): an array, or images that are read when a slice of them is taken."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


class StoredSamples(Protocol):
    """Samples whose images need not be in memory."""

    @property
    def images(self) -> StoredImages: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def index(self) -> NDArray[np.int64]: ...


def write_shard(path: Path, samples: StoredSamples, split: str, shard: int, shards: int) -> ShardEntry:
    """Write one shard; returns its entry in the manifest. OSError when the file cannot be written.

    The same samples give the same `contents_sha256`. The bytes of the file depend on the version of HDF5, and with h5py
    3.11 also on the time.
    """
    attributes: dict[str, str | int] = dict(zip(ATTRIBUTES, (FORMAT, VERSION, split, shard, shards), strict=True))
    planned = plain_file({name: (FORMS[name], getattr(samples, name).shape) for name in ARRAYS}, attributes)
    of_file, of_contents = hashlib.sha256(), hashlib.sha256()
    with Path(path).open("wb") as file:
        for part in planned.parts:  # the arrays are in the order of ARRAYS
            if isinstance(part, bytes):
                file.write(part)
                of_file.update(part)
                continue
            array = getattr(samples, part)
            of_contents.update(_header(part, array))
            for block in _blocks(array):
                file.write(block)
                of_file.update(block)
                of_contents.update(block)
        size = file.tell()
    hashes = of_file.hexdigest(), of_contents.hexdigest()
    return ShardEntry(Path(path).name, size, len(samples.labels), *hashes, Offsets(**planned.offsets))


def read_shard(folder: Path, manifest: Manifest, split: str, shard: int) -> Samples:
    """Check one shard file against the manifest and read it; raises DataError. The arrays are read-only."""
    entry = manifest.splits[split][shard]
    path = Path(folder) / entry.file
    try:
        content = files.read_bytes(path, entry.bytes)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ValueError(f"{len(content):,} bytes without the SHA-256 in the manifest: cut short or altered")
        samples = _samples(content, manifest, split, shard)
        if entry.contents_sha256 not in (None, samples.sha256):
            raise ValueError("the hash of images, labels and index is not that in the manifest")
        for name, array, end in (("labels", samples.labels, len(manifest.classes)), ("index", samples.index, math.inf)):
            if len(array) and not 0 <= array.min() <= array.max() < end:
                limit = f" and less than {end}" if name == "labels" else ""
                raise ValueError(f"{name} from {array.min()} to {array.max()}, expected at least 0{limit}")
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}; {REPAIR}") from error
    except ValueError as error:
        raise DataError(f"{shown(path)}: {error}; {REPAIR}") from error
    return samples


def _samples(content: bytes, manifest: Manifest, split: str, shard: int) -> Samples:
    """The samples in a shard file; ValueError if its arrays are not those that the manifest states."""
    entry = manifest.splits[split][shard]
    forms: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (dtype, (entry.samples, *(manifest.image_shape if name == "images" else ())))
        for name, dtype in FORMS.items()
    }
    if entry.offsets is not None:
        places = {name: (*form, vars(entry.offsets)[name]) for name, form in forms.items()}
        return Samples(**plain_arrays(content, places, 0, len(content)))
    attributes, arrays = read_isolated(content)  # version 1
    expected = dict(zip(ATTRIBUTES, (FORMAT, 1, split, shard, manifest.shard_count), strict=True))
    found = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    if (attributes, found) != (expected, forms):
        raise ValueError(f"it holds {shown(found, 300)}, {shown(attributes, 200)}; expected {forms}, {expected}")
    return Samples(**arrays)
