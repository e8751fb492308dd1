"""Arrays of a foreign HDF5 file, read by a separate process.

The process is `data_prep.hdf5_program`. It writes to a pipe: the names of the arrays in JSON, or one array as a .npy
file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dptrain.errors import DataError
from dptrain.system.files import LONGEST_TEXT_FILE
from dptrain.system.old_hdf5 import KEPT_VARIABLES
from dptrain.system.text import shown

from . import hdf5_program


def array_names(path: Path) -> list[str]:
    """The paths of all arrays in the file; DataError if it cannot be read."""
    with _process(path) as output:
        text = output.read(LONGEST_TEXT_FILE)
    try:
        return [str(name) for name in json.loads(text)]
    except ValueError:
        raise DataError(f"the names of its arrays are longer than {LONGEST_TEXT_FILE:,} bytes") from None


@contextmanager
def npy_bytes(path: Path, name: str) -> Iterator[IO[bytes]]:
    """An array as the stream of a .npy file; DataError if it cannot be read, at the end of the block too."""
    with _process(path, name) as output:
        yield output


@contextmanager
def _process(*words: Path | str) -> Iterator[IO[bytes]]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    # -P: no module in the working directory shadows an installed one.
    process = subprocess.Popen(
        [sys.executable, "-P", hdf5_program.__file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept | {"OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C ends the program that waits; the closed pipe ends this process
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        try:
            yield process.stdout
            _check_end(process, process.stderr)
        except DataError:
            if not process.stdout.read(1):  # an array that ends too early: has the process failed?
                _check_end(process, process.stderr)
            raise
        finally:
            process.kill()


def _check_end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Wait for the end of a process that has written everything; DataError if it has failed."""
    why = errors.read(2000).decode(errors="replace").strip()
    if status := process.wait():
        if status != hdf5_program.FAILED:
            why = f"the process that reads HDF5 ended with {status}"  # -11: libhdf5 crashed
        raise DataError(f"cannot be read as HDF5: {shown(why, 300)}")
