"""Plain HDF5 files: each array is contiguous and uncompressed at a known offset in the file.

A reader that knows the offsets needs no HDF5 library. This matters because libhdf5 can crash on a forged file, and
because its versions differ: HDF5 2.0 by default writes files that 1.14 cannot open.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.system.text import shown

ALIGNMENT = 64  # bytes: each array begins on a cache line
# The newest format that all versions of HDF5 from 1.10 can read. Its bytes still depend on the version.
FORMAT_LIMITS = ("v110", "v110")


def plain_hdf5(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str | int], user_block: int = 0
) -> tuple[memoryview, dict[str, int]]:
    """The bytes of a file after its user block, and the offset in the whole file of each array.

    `arrays` are by path, "name" or "group/name"; `attributes` are those of the root group. `user_block` is 0, or a
    power of 2 of at least 512 bytes. The offset of an empty array is the end of the user block.
    """
    import h5py  # takes 0.1 s, and only writing needs it

    # In memory, because libhdf5 crashes when the process exits after a failed write to a full disk.
    content = io.BytesIO()
    with h5py.File(
        content,
        "w",
        libver=FORMAT_LIMITS,
        userblock_size=user_block,
        alignment_threshold=1,
        alignment_interval=ALIGNMENT,
    ) as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        datasets = {path: file.create_dataset(path, data=array) for path, array in arrays.items()}
        offsets = {path: dataset.id.get_offset() if dataset.size else user_block for path, dataset in datasets.items()}
    return content.getbuffer()[user_block:], offsets


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
