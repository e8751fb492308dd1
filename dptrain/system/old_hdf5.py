"""HDF5 files that libhdf5 wrote (format version 1 of data sets and checkpoints), read in a separate process.

libhdf5 may crash, hang or take any amount of memory when a file is forged. The process has limits of memory and time,
opens no file (it gets the content through a pipe), knows nothing of MPI, and ends after one file. This module is also
its program, and therefore imports nothing else of dptrain.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import subprocess
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORY = (1 << 30, 6)  # bytes of address space for Python, NumPy and libhdf5, plus 6 times the size of the file
SECONDS = (30, 1e-6)  # for reading a file, plus so many for each of its bytes
# What Python needs to find its libraries. With MPI's variables, an h5py built with MPI would start MPI.
KEPT_VARIABLES = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV")
ATTRIBUTES = "/"  # the name, among those of the arrays, of the attributes in JSON

Content = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def read_isolated(content: bytes | memoryview) -> Content:
    """Attributes of the root group, and every dataset by its path, of a file in memory; ValueError in one short line.

    Datasets must be stored in full in the file itself. Links are ignored. Attributes become Python values.
    """
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    seconds = _seconds(content)
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__],  # -P: no module in the working directory shadows an installed one
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},
            timeout=seconds,
            start_new_session=True,  # Ctrl-C ends the program that waits, not this process
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"HDF5 was not read within {seconds} s") from None
    if done.returncode:
        raise ValueError(f"the process that reads HDF5 ended with {done.returncode}")  # -11: libhdf5 crashed
    with np.load(io.BytesIO(done.stdout)) as answer:
        arrays = dict(answer)
    attributes = json.loads(str(arrays.pop(ATTRIBUTES)))
    if "error" in attributes:
        raise ValueError(attributes["error"])
    return attributes["values"], arrays


def _seconds(content: bytes | memoryview) -> int:
    return math.ceil(SECONDS[0] + SECONDS[1] * len(content))


def _main() -> None:
    """The process: a file on standard input, its answer on standard output."""
    content = sys.stdin.buffer.read()
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, MEMORY[0] + MEMORY[1] * len(content)),
        (resource.RLIMIT_CPU, _seconds(content)),  # it ends also if the parent was killed
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    arrays: dict[str, NDArray[Any]] = {}
    try:
        values, arrays = _read(content)
        answer = json.dumps({"values": values})
    except Exception as error:  # libhdf5 raises anything for a forged file
        answer = json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]})
    packed, contents = io.BytesIO(), {ATTRIBUTES: np.array(answer), **arrays}
    np.savez(packed, **contents)  # type: ignore[arg-type]
    sys.stdout.buffer.write(packed.getbuffer())
    sys.stdout.buffer.flush()
    os._exit(0)  # without the exit handlers of libhdf5, which may crash


def _read(content: bytes) -> Content:
    import zipfile  # noqa: F401 - for np.savez, as no file can be opened after the next limit

    import h5py

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # from here on no file can be opened
    room, arrays = len(content), {}

    def add(path: str, member: Any) -> None:
        nonlocal room
        if isinstance(member, h5py.Dataset):
            size = math.prod(member.shape) * member.dtype.itemsize
            if size > room or member.id.get_storage_size() < size or member.dtype.hasobject:
                raise ValueError(f"{path} is {member.dtype} {member.shape}, which is not stored in full")
            room -= size
            arrays[path] = member[()]

    with h5py.File(io.BytesIO(content), "r") as file:
        attributes = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in file.attrs.items()}
        file.visititems(add)
    return attributes, arrays


if __name__ == "__main__":
    _main()
