"""Arrays of a foreign HDF5 file, read by a separate process.

The process is `data_prep.hdf5_program`. It writes to a pipe: the names of the arrays in JSON, or one array as a .npy
file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dptrain.errors import DataError
from dptrain.system.old_hdf5 import KEPT_VARIABLES
from dptrain.system.text import shown

from . import hdf5_program

LONGEST_NAMES = 8 << 20  # bytes of the names of all arrays in JSON


def array_names(path: Path) -> list[str]:
    """The paths of all arrays in the file; DataError if it cannot be read."""
    with _process(path) as output:
        text = output.read(LONGEST_NAMES + 1)
        if len(text) > LONGEST_NAMES:  # in the block, which ends the process: it waits until all is read
            raise DataError(f"the names of its arrays are longer than {LONGEST_NAMES:,} bytes")
    return [str(name) for name in json.loads(text)]


@contextmanager
def npy_bytes(path: Path, name: str) -> Iterator[IO[bytes]]:
    """An array as the stream of a .npy file; DataError if it cannot be read, at the end of the block too."""
    with _process(path, name) as output:
        yield output


@contextmanager
def _process(*words: Path | str) -> Iterator[IO[bytes]]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    with tempfile.TemporaryFile() as errors:  # not a pipe, which may be full while this process reads the other one
        # -P: no module in the working directory shadows an installed one.
        process = subprocess.Popen(
            [sys.executable, "-P", hdf5_program.__file__, *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C ends the program that waits; the closed pipe ends this process
        )
        assert process.stdout is not None
        with process, process.stdout:
            try:
                yield process.stdout
                _check_end(process, errors)
            except DataError:
                if not process.stdout.read(1):  # an array that ends too early: has the process failed?
                    _check_end(process, errors)
                raise
            finally:
                process.kill()


def _check_end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Wait for the end of a process that has written everything; DataError if it has failed."""
    if status := process.wait():
        errors.seek(0)
        why = errors.read(2000).decode(errors="replace").strip()
        if status != hdf5_program.FAILED:
            why = f"the process that reads HDF5 ended with {status}"  # -11: libhdf5 crashed
        raise DataError(f"cannot be read as HDF5: {shown(why, 300)}")
