"""The pickles in an archive of CIFAR. They may be hostile: nothing is imported, and NumPy does not read the arrays.

A batch is a dictionary with an array of pixels, uint8 (n, C * H * W). In the published files, these bytes are copied
from the archive to the disk. An array in Fortran order, or one that Python 3 wrote with protocol 2, is held in memory:
one batch at a time.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import IO, Any, ClassVar, NamedTuple, cast

import numpy as np

from dptrain.errors import DataError, DptrainError
from dptrain.system.text import shown

from .spool import Spool

# What pickles of dictionaries, lists, numbers, strings and arrays are made of, in all protocols. The others make sets,
# which are as slow as dictionaries with nested tuples as keys, or objects, or copy the top of the stack.
OPCODES = (
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK
    + pickle.GET + pickle.BINGET + pickle.LONG_BINGET + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE
    + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.BININT2
    + pickle.LONG + pickle.LONG1 + pickle.LONG4 + pickle.FLOAT + pickle.BINFLOAT
    + pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING
    + pickle.BINBYTES + pickle.SHORT_BINBYTES + pickle.BINBYTES8
    + pickle.UNICODE + pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8
    + pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    + pickle.EMPTY_LIST + pickle.LIST + pickle.APPEND + pickle.APPENDS
    + pickle.EMPTY_DICT + pickle.DICT + pickle.SETITEM + pickle.SETITEMS
    + pickle.GLOBAL + pickle.STACK_GLOBAL + pickle.REDUCE + pickle.BUILD
)  # fmt: skip


def read_dictionary(file: IO[bytes], size: int, images: int, spool: Spool) -> dict[bytes, Any]:
    """The dictionary of a pickle of `size` bytes; DataError for anything else.

    If an array in C order has exactly the bytes of that many images, they are appended to the spool, and the dictionary
    has only the number of the first image.
    """
    try:
        value = _Unpickler(_Sized(file, size), images, spool).load()
    except (DptrainError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = shown(f"{type(error).__name__}: {error}", 200)
        raise DataError(f"not a readable pickle: {reason}") from error
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


class _Sized:
    """A file of `size` bytes. No read asks for more, as a file makes room for what it is asked for."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._size))

    def readline(self) -> bytes:
        return self._file.readline()


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


def _check_key(stack: list[Any]) -> None:
    _check_keys([stack[-2]])


def _check_keys(stack: list[Any]) -> None:
    if not all(type(key) in (bytes, str) for key in stack[::2]):
        raise DataError("the pickle has keys that are not text, unlike CIFAR: it may be hostile")


def _check_build(stack: list[Any]) -> None:
    if not isinstance(stack[-2], _Recorded):
        raise DataError("the pickle sets attributes of other objects than arrays, unlike CIFAR: it may be hostile")


def _checked(code: int, check: Callable[[list[Any]], None]) -> Callable[[Any], None]:
    """What the unpickler does for an opcode, after a check of its stack above the last mark."""

    def load(unpickler: Any) -> None:
        check(unpickler.stack)
        cast(Any, pickle._Unpickler.dispatch[code])(unpickler)

    return load


CHECKS = {
    pickle.SETITEM: _check_key,
    pickle.SETITEMS: _check_keys,
    pickle.DICT: _check_keys,
    pickle.BUILD: _check_build,
}


class _Unpickler(pickle._Unpickler):
    """Reads dictionaries with text as keys, lists, numbers, strings and arrays, and imports nothing.

    This is the unpickler in Python. That in C needs memory for all pixels twice. It also reserves 16 bytes for each
    value that the pickle might keep, and a pickle of ten bytes may state 2^32 values. Tuples are no keys: to hash a
    tuple of tuples takes any time, or ends the process.
    """

    append: Any
    read: Any
    stack: list[Any]

    def __init__(self, file: _Sized, images: int, spool: Spool) -> None:
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
        imported = shown(f"{module}.{name}", 200)
        raise DataError(f"the pickle imports {imported}, unlike CIFAR: it may be hostile; no code was run")

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
        **{code: pickle._Unpickler.dispatch[code] for code in OPCODES},
        **{code[0]: _checked(code[0], check) for code, check in CHECKS.items()},
        pickle.BINSTRING[0]: load_bytes,  # from Python 2
        pickle.BINBYTES[0]: load_bytes,
    }


def _encode(text: Any, encoding: object = None) -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes to an old pickle."""
    if type(text) is not str or type(encoding) not in (str, bytes):  # str() of nested lists takes any time
        raise DataError("the pickle encodes something that is not text, unlike CIFAR: it may be hostile")
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"the pickle encodes text to {shown(repr(encoding), 80)}, unlike CIFAR: it may be hostile")
    return text.encode("latin1")
