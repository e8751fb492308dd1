"""Plain HDF5 files: each array is contiguous and uncompressed at a known offset in the file.

A reader that knows the offsets needs no HDF5 library. This matters because libhdf5 can crash on a forged file, and
because its versions differ: HDF5 2.0 by default writes files that 1.14 cannot open.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.system.signals import delayed_signals
from dptrain.system.text import shown

ALIGNMENT = 64  # bytes: each array begins on a cache line
# The newest format that all versions of HDF5 from 1.10 can read. Its bytes still depend on the version.
FORMAT_LIMITS = ("v110", "v110")


@dataclass(frozen=True)
class PlainFile:
    """A file without the values of its arrays: the arrays' offsets in the whole file, and the parts of the file.

    `parts` are in their order, after the user block: bytes, or the name of an array whose values belong there. An empty
    array is at the end of the user block.
    """

    offsets: dict[str, int]
    parts: list[bytes | str]


def plain_file(
    forms: Mapping[str, tuple[str, tuple[int, ...]]], attributes: Mapping[str, str | int], user_block: int = 0
) -> PlainFile:
    """A file for arrays of these types and shapes, which may be larger than the memory.

    The arrays have a path, "name" or "group/name"; `attributes` are those of the root group. `user_block` is 0, or a
    power of 2 of at least 512 bytes.
    """
    import h5py  # takes 0.1 s, and only writing needs it

    # libhdf5 writes to memory, because it crashes when the process exits after a failed write to a full disk. This
    # memory is a file with a hole for each array: the values are never in it.
    with os.fdopen(os.memfd_create("metadata", os.MFD_CLOEXEC), "w+b") as content:
        with (
            delayed_signals(),
            h5py.File(
                content,
                "w",
                libver=FORMAT_LIMITS,
                userblock_size=user_block,
                alignment_threshold=1,
                alignment_interval=ALIGNMENT,
            ) as file,
        ):
            for name, value in attributes.items():
                file.attrs[name] = value
            offsets = {}
            for path, (dtype, shape) in forms.items():
                properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                dataset = file.create_dataset(path, shape, dtype, dcpl=properties)
                if shape == ():  # h5py ignores the properties of these, and allocates at the first write
                    dataset[()] = 0
                offsets[path] = dataset.id.get_offset() if dataset.size else user_block
        parts: list[bytes | str] = []
        content.seek(user_block)
        sizes = {path: math.prod(shape) * np.dtype(dtype).itemsize for path, (dtype, shape) in forms.items()}
        for path in sorted(forms, key=offsets.__getitem__):
            parts += [content.read(offsets[path] - content.tell()), path]
            content.seek(sizes[path], os.SEEK_CUR)
        return PlainFile(offsets, [*parts, content.read()])


def plain_hdf5(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str | int], user_block: int = 0
) -> tuple[memoryview, dict[str, int]]:
    """The bytes of a file after its user block, and the offset in the whole file of each array: see `plain_file`."""
    file = plain_file({path: (array.dtype.str, array.shape) for path, array in arrays.items()}, attributes, user_block)
    content = b"".join(
        np.ascontiguousarray(arrays[part]).data if isinstance(part, str) else part for part in file.parts
    )
    return memoryview(content), file.offsets


def plain_arrays(
    content: bytes, places: Mapping[str, tuple[str, tuple[int, ...], int]], start: int, end: int
) -> dict[str, NDArray[Any]]:
    """Arrays in the bytes of a file, by their type, shape and offset; they share the memory of `content`.

    ValueError if they overlap or are not within content[start:end].
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape, offset) in sorted(places.items(), key=lambda item: (item[1][2], math.prod(item[1][1]))):
        size = np.dtype(dtype).itemsize * math.prod(shape)  # Python's integers do not overflow
        if offset < start or offset + size > end:
            raise ValueError(f"{shown(name, 80)} overlaps another array or lies outside the data")
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape)
        start = offset + size
    return {name: arrays[name] for name in places}
