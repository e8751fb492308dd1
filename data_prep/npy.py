"""The header of a .npy file (numpy.lib.format), without the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from numpy.lib import format as npy

from dptrain.errors import DataError

from .arrays import ArrayStream

LONGEST = 2**63  # NumPy has no arrays of that length; Python does not print a number of thousands of digits


@contextmanager
def npy_stream(stream: IO[bytes], name: str, damaged: tuple[type[Exception], ...] = ()) -> Iterator[ArrayStream]:
    """The array called `name` in a stream of a .npy file. Pickled objects are refused later: their type is `object`.

    DataError for another file; the exceptions `damaged` of the stream are passed on.
    """
    passed_on: tuple[type[Exception], ...] = (OSError, *damaged)
    try:
        if npy.read_magic(stream) != (1, 0):  # others have headers of up to 4 GiB
            raise ValueError
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
        if max(shape, default=0) >= LONGEST:
            raise ValueError
    except passed_on:
        raise
    except Exception as error:  # a damaged header can raise nearly anything
        raise DataError(f"array {name} is not a .npy file of format 1.0, or is damaged") from error
    if fortran and len(shape) > 1:
        raise DataError(f"array {name} is stored column by column; save numpy.ascontiguousarray({name})")
    yield ArrayStream(stream, shape, dtype)
    if stream.read(1):
        raise DataError(f"array {name} has more bytes than its shape needs")
