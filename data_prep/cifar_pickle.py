"""The pickles in an archive of CIFAR. They may be hostile: nothing is imported, and NumPy does not read the arrays.

A batch is a dictionary with an array of pixels, uint8 (n, C * H * W). As they were published, its bytes go from the
file to the disk. Those of an array in Fortran order, or written by Python 3 with protocol 2, are in memory: one batch.
"""

from __future__ import annotations

import math
import pickle
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np

from dptrain.errors import DataError, DptrainError

from .spool import Spool


def read_dictionary(file: IO[bytes], images: int, spool: Spool) -> dict[bytes, Any]:
    """The dictionary of a pickle; DataError for anything else.

    The bytes of that many images, in the order of the images, are appended to the spool.
    """
    try:
        value = _Unpickler(file, images, spool).load()
    except DptrainError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"not a readable pickle: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"a pickled {type(value).__name__}, expected a dictionary")
    return value


def stored_images(array: Any, images: int, spool: Spool) -> int:
    """Store that many images of an array from `read_dictionary`, unless they are; the number of the first one."""
    shape = images, math.prod(spool.shape[1:])
    # What ndarray.__setstate__ gets: version, shape, dtype, whether in Fortran order, the bytes.
    match array.state if isinstance(array, _Recorded) else None:
        case (_, tuple(given), _Recorded(arguments=("u1" | b"u1", *_)), 0 | 1, _Stored(start)) if given == shape:
            return start
        case (_, tuple(given), _Recorded(arguments=("u1" | b"u1", *_)), 0 | 1 as fortran, bytes(content)) if (
            given == shape and len(content) == math.prod(shape)
        ):
            start = len(spool)
            pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
            spool.append(pixels.reshape(images, *spool.shape[1:]))
            return start
    raise DataError(f"data is not an uint8 array {shape}")


class _Recorded:
    """An array or dtype in a pickle, as the arguments and the state from which NumPy would make it.

    NumPy itself must not read them: a forged state of a dtype makes it use any memory as an object.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Stored(NamedTuple):
    """The bytes of images that are in the spool, by the number of the first one."""

    start: int


class _Unpickler(pickle._Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays, and imports nothing.

    It is the unpickler that Python has in Python: the one in C would need memory for all pixels twice.
    """

    append: Any
    read: Any
    stack: list[Any]

    def __init__(self, file: IO[bytes], images: int, spool: Spool) -> None:
        super().__init__(file, encoding="bytes")
        self._images, self._spool = images, spool

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct") | ("numpy", "dtype"):
                return _Recorded
            case "numpy", "ndarray":
                return None  # only the first argument of _reconstruct
            case "_codecs", "encode":
                return _encode
        raise DataError(f"the pickle imports {module}.{name}, unlike CIFAR: it may be hostile; no code was run")

    def load_bytes(self) -> None:
        """Bytes after their length in 4 bytes."""
        size = int.from_bytes(self.read(4), "little")
        in_order = self.stack[-1:] == [False]  # what precedes the bytes of an array: whether in Fortran order
        if not in_order or size != self._images * math.prod(self._spool.shape[1:]):
            self.append(self.read(size))
            return
        start = len(self._spool)
        if self._spool.read_from(self, self._images) < self._images:
            raise EOFError
        self.append(_Stored(start))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BINSTRING[0]: load_bytes,  # from Python 2
        pickle.BINBYTES[0]: load_bytes,
    }


def _encode(text: Any, encoding: object = None) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes to an old pickle."""
    if type(text) is not str:  # str() of nested lists takes any time
        raise DataError("the pickle encodes something that is not text, unlike CIFAR: it may be hostile")
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"the pickle encodes text to {encoding!r}, unlike CIFAR: it may be hostile")
    return text.encode("latin1")
