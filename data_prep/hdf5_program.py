"""The process that reads a foreign HDF5 file: hdf5_program.py FILE [ARRAY].

libhdf5 may crash, hang or take any amount of memory when a file is forged. This process has limits of memory and time.
Links, arrays that are stored outside the file, and arrays that are far larger than what is stored of them, are refused.
It imports nothing of this project.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY = 4 << 30  # bytes of address space
SECONDS = (60, 1e-7)  # of CPU time, and so many for each byte of the file
MOST_UNPACKED = 1000  # times what is stored of an array: the most that HDF5's gzip filter can reach
BLOCK = 4 << 20  # bytes that are read at a time
FAILED = 3


def _main(path: str, *name: str) -> None:
    size = Path(path).stat().st_size
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: math.ceil(SECONDS[0] + SECONDS[1] * size),
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    status = 0
    try:
        _write(path, *name)
        sys.stdout.flush()
    except Exception as error:  # libhdf5 raises anything for a forged file
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        sys.stderr.flush()
        status = FAILED
    os._exit(status)  # without the exit handlers of libhdf5, which may crash


def _write(path: str, name: str = "") -> None:
    import h5py
    import numpy as np

    with h5py.File(path, "r") as file:
        if not name:
            names: list[str] = []
            file.visititems(lambda one, member: names.append(one) if isinstance(member, h5py.Dataset) else None)
            print(json.dumps(names))
            return
        _check_links(h5py, file, name)
        array = file[name]
        if array.shape is None:
            raise ValueError(f"{name} is empty: it has no shape")
        size = math.prod(array.shape) * array.dtype.itemsize
        if array.external or array.is_virtual or array.dtype.hasobject:
            raise ValueError(f"{name} is stored outside the file, or is not an array of numbers")
        if size > MOST_UNPACKED * array.id.get_storage_size() + BLOCK:
            raise ValueError(f"{name} has {size:,} bytes, of which {array.id.get_storage_size():,} are stored")
        output = sys.stdout.buffer
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(output, header)
        rows = max(1, BLOCK // max(1, array.dtype.itemsize * math.prod(array.shape[1:])))
        if array.chunks:  # whole chunks: each is unpacked once
            rows = -(-rows // array.chunks[0]) * array.chunks[0]
        for start in range(0, array.shape[0] if array.shape else 0, rows):
            output.write(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data)
        output.flush()


def _check_links(h5py: Any, file: Any, name: str) -> None:
    """ValueError unless every part of the path is in the file itself."""
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        if not isinstance(file.get("/".join(parts[:end]), getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")


if __name__ == "__main__":
    _main(*sys.argv[1:])
