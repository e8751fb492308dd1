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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.data.manifest import FORMAT, VERSION, Manifest, ShardEntry, array_forms
from dptrain.data.order import EpochKey, shuffled
from dptrain.errors import DataError
from dptrain.system import files
from dptrain.system.hdf5 import plain_hdf5
from dptrain.system.old_hdf5 import read_isolated
from dptrain.system.text import shown

ARRAYS = ("images", "labels", "index")
ATTRIBUTES = ("format", "version", "split", "shard", "shards")
REPAIR = "restore it from a copy, or pack the data set again"


@dataclass(frozen=True)
class Samples:
    """Images uint8 (n, C, H, W), labels int64 (n,) and index int64 (n,); row i of each belongs to sample i.

    A `Source` (see dptrain.data.source) with all images in memory. Arrays read from a file are read-only.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, key: EpochKey) -> NDArray[np.intp]:
        """Rows in the order of an epoch, (n,)."""
        return shuffled(key, len(self))

    def rows(self, indices: NDArray[np.intp] | slice) -> NDArray[np.uint8]:
        """The images of these rows, (m, C, H, W)."""
        return self.images[indices]

    @property
    def sha256(self) -> str:
        """SHA-256 of names, types, shapes and contents of the three arrays."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def write_shard(path: Path, samples: Samples, split: str, shard: int, shards: int) -> ShardEntry:
    """Write one shard; returns its entry in the manifest. OSError when the file cannot be written.

    The same samples give the same `contents_sha256`. The bytes of the file depend on the version of HDF5, and with h5py
    3.11 also on the time.
    """
    attributes: dict[str, str | int] = dict(zip(ATTRIBUTES, (FORMAT, VERSION, split, shard, shards), strict=True))
    content, offsets = plain_hdf5({name: getattr(samples, name) for name in ARRAYS}, attributes)
    Path(path).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardEntry(Path(path).name, len(content), len(samples), digest, samples.sha256, offsets)


def read_shard(folder: Path, manifest: Manifest, split: str, shard: int) -> Samples:
    """Check one shard file against the manifest and read it; raises DataError. The arrays are read-only."""
    entry = manifest.splits[split][shard]
    path = shown(Path(folder) / entry.file)
    content = _read_checked(folder, entry)
    forms = array_forms(entry.samples, manifest.image_shape)
    try:
        if entry.offsets is None:
            arrays = _read_version_1(content, forms, (FORMAT, 1, split, shard, manifest.shard_count))
        else:
            arrays = {
                name: np.frombuffer(content, dtype, math.prod(shape), entry.offsets[name]).reshape(shape)
                for name, (dtype, shape) in forms.items()
            }
    except ValueError as error:
        raise DataError(f"{path}: not a readable shard: {error}; {REPAIR}") from error
    samples = Samples(**arrays)
    if entry.contents_sha256 not in (None, samples.sha256):
        raise DataError(f"{path}: the hash of images, labels and index is not that in the manifest; {REPAIR}")
    for name, array, end in (("labels", samples.labels, len(manifest.classes)), ("index", samples.index, math.inf)):
        if len(array) and not 0 <= array.min() <= array.max() < end:
            expected = f"0 to {end - 1} for {end} classes" if name == "labels" else "0 or more"
            raise DataError(f"{path}: {name} from {array.min()} to {array.max()}, expected {expected}; {REPAIR}")
    return samples


def _read_checked(folder: Path, entry: ShardEntry) -> bytes:
    """The bytes of a shard file; DataError unless size and SHA-256 are those in the manifest."""
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


def _read_version_1(
    content: bytes, forms: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], expected: tuple[str | int, ...]
) -> dict[str, NDArray[Any]]:
    """The arrays of a shard that libhdf5 wrote; ValueError when they are not what the manifest states."""
    attributes, arrays = read_isolated(content)
    if attributes != dict(zip(ATTRIBUTES, expected, strict=True)) or set(arrays) != set(forms):
        raise ValueError(
            f"it holds {shown(sorted(arrays), 200)} with attributes {shown(attributes, 200)}, expected {sorted(forms)} "
            f"with {dict(zip(ATTRIBUTES, expected, strict=True))}"
        )
    for name, (dtype, shape) in forms.items():
        if (arrays[name].dtype, arrays[name].shape) != (dtype, shape):
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}, expected {dtype} {shape}")
    return arrays
