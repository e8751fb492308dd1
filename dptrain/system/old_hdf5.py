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
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORY = (1 << 30, 6)  # bytes of address space for Python, NumPy and libhdf5, plus 6 times the size of the file
SECONDS = (10, 1e-7)  # of CPU time, plus so many for each byte of the file
PATIENCE = 10  # wall time may be 10 times as long, on a busy machine
MOST_OBJECTS = 20_000
# What Python needs to find its libraries. With MPI's variables, an h5py built with MPI would start MPI.
KEPT_VARIABLES = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV")
ATTRIBUTES = "/"  # the name, among those of the arrays, of the attributes in JSON

Content = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def read_isolated(content: bytes | memoryview) -> Content:
    """Attributes of the root group, and every dataset by its path, of a file in memory; ValueError in one short line.

    Only plain datasets of numbers are read: stored whole in the file itself under hard links, without compression, at
    most one group deep. Attributes become Python values.
    """
    seconds = SECONDS[0] + math.ceil(SECONDS[1] * len(content))
    limits = [str(MEMORY[0] + MEMORY[1] * len(content)), str(seconds)]
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    try:
        done = subprocess.run(
            # -P: no module in the working directory or beside this one shadows an installed one.
            [sys.executable, "-P", str(Path(__file__).resolve()), *limits],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},
            timeout=PATIENCE * seconds,
            start_new_session=True,  # Ctrl-C ends the program that waits, not this process
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"HDF5 was not read within {PATIENCE * seconds} s") from None
    except OSError as error:
        raise ValueError(f"cannot start {sys.executable} to read HDF5: {error.strerror}") from error
    if done.returncode == -signal.SIGXCPU:
        raise ValueError(f"libhdf5 did not read it within {seconds} s of computing")
    if done.returncode:
        how = f"crashed (signal {-done.returncode})" if done.returncode < 0 else f"ended with {done.returncode}"
        raise ValueError(f"the process that reads HDF5 {how}")
    with np.load(io.BytesIO(done.stdout)) as answer:
        arrays = dict(answer)
    attributes = json.loads(str(arrays.pop(ATTRIBUTES)))
    if "error" in attributes:
        raise ValueError(attributes["error"])
    return attributes["values"], arrays


def _main() -> None:
    """The process: a file on standard input, its answer on standard output."""
    memory, seconds = map(int, sys.argv[1:])
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    arrays: dict[str, NDArray[Any]] = {}
    try:
        values, arrays = _read(sys.stdin.buffer.read())
        answer: dict[str, Any] = {"values": values}
    except Exception as error:  # libhdf5 raises anything for a forged file
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        advice = "; a later HDF5 wrote it: pip install --upgrade h5py" if "version number" in text else ""
        answer = {"error": text + advice}
    packed, contents = io.BytesIO(), {ATTRIBUTES: np.array(json.dumps(answer)), **arrays}
    np.savez(packed, **contents)  # type: ignore[arg-type]
    sys.stdout.buffer.write(packed.getbuffer())
    sys.stdout.buffer.flush()
    os._exit(0)  # without the exit handlers of libhdf5, which may crash


def _read(content: bytes) -> Content:
    import zipfile  # noqa: F401 - for np.savez, as no file can be opened after the next limit

    import h5py

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # from here on no file can be opened
    room, arrays = len(content), {}
    with h5py.File(io.BytesIO(content), "r") as file:
        if len(file.attrs) > MOST_OBJECTS:
            raise ValueError(f"{len(file.attrs):,} attributes")
        attributes = {str(name): _plain_value(value) for name, value in file.attrs.items()}
        for path, dataset in _datasets(file):
            size = math.prod(dataset.shape) * dataset.dtype.itemsize
            filters = dataset.id.get_create_plist()
            kinds = {filters.get_filter(number)[0] for number in range(filters.get_nfilters())}
            if dataset.is_virtual or dataset.external or kinds - {h5py.h5z.FILTER_FLETCHER32}:
                raise ValueError(f"{path} is not stored in the file itself without compression")
            if dataset.dtype.kind not in "iuf" or dataset.dtype.subdtype is not None:
                raise ValueError(f"{path} is {dataset.dtype}, expected plain numbers")
            if size > room or dataset.id.get_storage_size() < size:
                raise ValueError(f"{path} is {dataset.dtype} {dataset.shape}, which is not stored in full")
            room -= size
            arrays[path] = dataset[()]
    return attributes, arrays


def _datasets(file: Any) -> list[tuple[str, Any]]:
    """Path and dataset of all datasets in a file and its groups; ValueError for other links and deeper groups."""
    import h5py

    found, groups = [], [("", file)]
    for prefix, group in groups:
        if len(group) > MOST_OBJECTS:
            raise ValueError(f"{len(group):,} objects in one group")
        for name in group:
            path, link = prefix + name, group.get(name, getlink=True)
            member = group[name] if isinstance(link, h5py.HardLink) else link
            if isinstance(member, h5py.Group) and not prefix:
                groups.append((f"{path}/", member))
            elif isinstance(member, h5py.Dataset):
                found.append((path, member))
            else:
                raise ValueError(f"{path} is a link, or in nested groups; expected a dataset in the file itself")
    return found


def _plain_value(value: Any) -> Any:
    """An attribute as text, a number, or a list of such."""
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    members = plain if isinstance(plain, list) else [plain]
    if not all(isinstance(member, str | int | float) for member in members):
        raise ValueError(f"an attribute is {type(plain).__name__}, expected text or numbers")
    return plain


if __name__ == "__main__":
    _main()
