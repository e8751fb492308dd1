"""HDF5 files of format version 1 (data sets and checkpoints), which libhdf5 wrote, are read in a separate process.

libhdf5 may crash, hang or use any amount of memory on a forged file. The process has limits of memory and time, gets
the content through a pipe, opens no file, does not use MPI, and ends after one file. This module is also the program of
the process, and therefore imports nothing else of dptrain.
"""

from __future__ import annotations

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

MEMORY = (1 << 30, 6)  # bytes of address space: for Python, NumPy and libhdf5; and this many times the file
SECONDS = (10, 1e-7)  # of computing: at least, and for each byte
PATIENCE = 10  # times as long may pass on a busy machine
MOST_OBJECTS = 20_000
# What Python needs to find its libraries. With the variables of MPI, an h5py built with MPI would start it.
KEPT_VARIABLES = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV")


class TooNewError(ValueError):
    """The file was written by a later HDF5 than this Python has, in a way that the earlier one cannot read."""


def read_isolated(content: bytes | memoryview) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Attributes of the root group, and every dataset by its path, of a file in memory; ValueError in one short line.

    TooNewError: h5py up to 3.15 (HDF5 1.14) cannot read what 3.16 (HDF5 2.0) wrote. Only plain datasets of numbers are
    read: stored completely in the file itself under hard links, without compression, at most one group deep.
    """
    seconds = SECONDS[0] + math.ceil(SECONDS[1] * len(content))
    limits = [str(MEMORY[0] + MEMORY[1] * len(content)), str(seconds)]
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    try:
        done = subprocess.run(
            # -P: no module in the working directory, or beside this one, replaces an installed one.
            [sys.executable, "-P", str(Path(__file__).resolve()), *limits],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},
            timeout=PATIENCE * seconds,
            start_new_session=True,  # Ctrl-C is for the waiting program
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"HDF5 was not read within {PATIENCE * seconds} s") from None
    except OSError as error:
        raise ValueError(f"cannot start {sys.executable} to read HDF5: {error.strerror}") from error
    if done.returncode == -signal.SIGXCPU:
        raise ValueError(f"libhdf5 did not read it within {seconds} s of computing")
    if done.returncode < 0:
        raise ValueError(f"libhdf5 crashed reading it (signal {-done.returncode})")
    if done.returncode:
        raise ValueError(f"HDF5 cannot be read: the process that reads it ended with status {done.returncode}")
    return _received(done.stdout)


def _received(answer: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    head = int.from_bytes(answer[:8], "little")
    described = json.loads(answer[8 : 8 + head])
    if "error" in described and "version number" in described["error"]:
        raise TooNewError(
            f"a later HDF5 than {described['hdf5']} wrote it ({described['error']}); pip install --upgrade h5py"
        )
    if "error" in described:
        raise ValueError(described["error"])
    arrays, place = {}, 8 + head
    for path, dtype, shape in described["arrays"]:
        arrays[path] = np.frombuffer(answer, dtype, math.prod(shape), place).reshape(shape)
        place += arrays[path].nbytes
    return described["attributes"], arrays


def _main() -> None:
    """The process: a file on standard input, the answer on standard output."""
    memory, seconds = map(int, sys.argv[1:])
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, hard))
    arrays: dict[str, NDArray[Any]] = {}
    try:
        content = sys.stdin.buffer.read()
        attributes, arrays = _read(content)
        described: dict[str, Any] = {
            "attributes": attributes,
            "arrays": [(path, array.dtype.str, array.shape) for path, array in arrays.items()],
        }
    except Exception as error:  # whatever libhdf5 raises for a forged file
        version = sys.modules["h5py"].version.hdf5_version if "h5py" in sys.modules else "none"
        described = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500], "hdf5": version}
    head = json.dumps(described).encode()
    sys.stdout.buffer.write(len(head).to_bytes(8, "little") + head)
    if "error" not in described:
        for array in arrays.values():
            sys.stdout.buffer.write(array.tobytes())
    sys.stdout.buffer.flush()
    os._exit(0)  # without the clean-up of libhdf5, which may crash


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    import io

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
    """The datasets of a file and of its groups, with their paths; ValueError for anything but hard links to them."""
    import h5py

    found, groups = [], [("", file)]
    for prefix, group in groups:
        if len(group) > MOST_OBJECTS:
            raise ValueError(f"{len(group):,} objects in one group")
        for name in group:
            path = prefix + name
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path} is a link")
            member = group[name]
            if isinstance(member, h5py.Group) and not prefix:
                groups.append((f"{path}/", member))
            elif isinstance(member, h5py.Dataset):
                found.append((path, member))
            else:
                raise ValueError(f"{path} is not stored in the file itself as a dataset")
    return found


def _plain_value(value: Any) -> Any:
    """An attribute as text, a number, or a list of them."""
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    members = plain if isinstance(plain, list) else [plain]
    if not all(isinstance(member, str | int | float) for member in members):
        raise ValueError(f"an attribute is {type(plain).__name__}, expected text or numbers")
    return plain


if __name__ == "__main__":
    _main()
