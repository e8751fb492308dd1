"""Plain HDF5 files: each array lies whole, contiguous and uncompressed at a known offset of the file.

A reader that knows the offsets needs no HDF5 library. That matters because libhdf5 can crash on a forged file, and
because versions of it differ: HDF5 2.0 writes files that 1.14 cannot open, unless it is held to an earlier format.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: an array that is mapped begins on a cache line
# The newest format that every HDF5 from 1.10 on can read. The bytes of two versions still differ.
FORMAT_LIMITS = ("v110", "v110")


def plain_hdf5(
    arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str | int], user_block: int = 0
) -> tuple[memoryview, dict[str, int]]:
    """What follows the user block of a file, and the offset in the whole file of each array.

    arrays: by path, "name" or "group/name"; attributes: those of the root group. `user_block` is 0, or a power of 2 of
    at least 512 bytes. The offset of an empty array is that of the end of the user block.
    """
    import h5py  # only a program that writes needs it, and it takes 0.1 s

    # In memory: libhdf5 crashes the process at its end when a disk was full below it, where Python only raises.
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
