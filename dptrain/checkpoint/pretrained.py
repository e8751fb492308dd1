"""Tensors by name from a checkpoint, a run folder, or a file that dptrain or another program exported.

Of a .safetensors or .npz file only the tensors that are wanted are read, so its size is bounded by the network's.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.arrays.layout import Shape
from dptrain.arrays.memory import Array
from dptrain.checkpoint.folder import open_checkpoint
from dptrain.checkpoint.format import Checkpoint
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, evaluated
from dptrain.errors import BrokenCheckpointError, CheckpointError
from dptrain.nn.finite import not_finite
from dptrain.system import files
from dptrain.system.extras import from_extra
from dptrain.system.text import shown

FLOATS = {"F16", "F32", "F64"}  # of safetensors
METADATA = "metadata"  # the array of an .npz file that is no tensor
# What Python raises for a damaged file; RuntimeError if it is encrypted, or compressed in an unknown way.
UNREADABLE = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
LONGEST_HEADER = 1 << 16  # bytes of an array's header in an .npz file


@dataclass(frozen=True)
class Pretrained:
    """Of a file: the shapes of its tensors by name, those that were wanted, float32, and its `params_sha256`, or ""."""

    shapes: dict[str, Shape]
    tensors: dict[str, Array]
    params_sha256: str


def read_pretrained(path: Path, wanted: Mapping[str, Shape], note: Callable[[str], None]) -> Pretrained:
    """The tensors of a file or run folder that have a wanted name with its shape: of a checkpoint those that it
    evaluates. Skipped checkpoints of a run folder are reported by `note`.

    CheckpointError when it cannot be read, or holds a value that is not finite.
    """
    if path.suffix in READERS and not path.is_dir():
        try:
            files.open_regular(path).close()
            found = READERS[path.suffix](path, wanted)
        except OSError as error:
            raise CheckpointError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
        except UNREADABLE as error:
            raise CheckpointError(f"{shown(path)}: not a readable {path.suffix} file: {shown(error, 300)}") from error
    else:
        try:
            found = _of_checkpoint(open_checkpoint(path, note), wanted)
        except BrokenCheckpointError as error:
            if path.is_dir() or path.suffix == ".h5":
                raise
            raise BrokenCheckpointError(f"{error}, or a file that ends with {' or '.join(READERS)}") from error
    for name, values in found.tensors.items():
        if what := not_finite(values):
            raise CheckpointError(f"{shown(path)}: {shown(name)} holds {what} as float32; use another file")
    return found


def _of_checkpoint(checkpoint: Checkpoint, wanted: Mapping[str, Shape]) -> Pretrained:
    vectors, tensors = evaluated(checkpoint.state.vectors), {}
    for vector in (PARAMETERS, BUFFERS):
        tensors.update(checkpoint.layouts[vector].views(vectors[vector]))
    shapes = {name: array.shape for name, array in tensors.items()}
    taken = {name: array.copy() for name, array in tensors.items() if wanted.get(name) == array.shape}
    return Pretrained(shapes, taken, checkpoint.state.params_sha256)


def _read_safetensors(path: Path, wanted: Mapping[str, Shape]) -> Pretrained:
    package = from_extra("safetensors", "a .safetensors file")
    shapes: dict[str, Shape] = {}
    tensors: dict[str, Array] = {}
    try:
        with package.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                part = file.get_slice(name)
                shapes[name] = tuple(part.get_shape())
                if wanted.get(name) == shapes[name]:
                    _check_float(path, name, part.get_dtype(), part.get_dtype() in FLOATS)
                    tensors[name] = _float32(file.get_tensor(name))
            metadata = file.metadata() or {}
    except package.SafetensorError as error:
        raise ValueError(str(error)) from error
    return Pretrained(shapes, tensors, metadata.get("params_sha256", ""))


def _read_npz(path: Path, wanted: Mapping[str, Shape]) -> Pretrained:
    shapes: dict[str, Shape] = {}
    tensors: dict[str, Array] = {}
    facts: Any = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            shape, dtype = _header(archive, member)
            if name == METADATA and shape == () and dtype.kind == "U" and dtype.itemsize <= files.LONGEST_TEXT_FILE:
                facts = json.loads(str(_array(archive, member)))
                continue
            shapes[name] = shape
            if wanted.get(name) == shape:
                _check_float(path, name, str(dtype), dtype.kind == "f" and dtype.itemsize <= 8)
                tensors[name] = _float32(_array(archive, member))
    found = facts.get("params_sha256", "") if isinstance(facts, dict) else ""
    return Pretrained(shapes, tensors, found if isinstance(found, str) else "")


def _check_float(path: Path, name: str, dtype: str, right: bool) -> None:
    if not right:
        raise CheckpointError(f"{shown(path)}: {shown(name)} is {dtype}, expected float16, float32 or float64")


def _float32(values: np.ndarray) -> Array:
    """The values; those beyond float32 become infinite, which is an error later."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _header(archive: zipfile.ZipFile, member: str) -> tuple[Shape, np.dtype[Any]]:
    """Shape and dtype of an array."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file, max_header_size=LONGEST_HEADER)
    return shape, dtype


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """An array whose header is known, so it is not larger than expected."""
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


READERS = {".safetensors": _read_safetensors, ".npz": _read_npz}
