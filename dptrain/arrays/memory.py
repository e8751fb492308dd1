"""Arrays that are kept from step to step, as new ones would cost page faults at every step."""

from __future__ import annotations

import contextlib
import math
import mmap
from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable
from operator import is_
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dptrain.errors import LimitError
from dptrain.system.failures import MEMORY

Array = NDArray[Any]
Views = TypeVar("Views")

ALIGNMENT = 64  # bytes: one cache line, and the widest vector register
HUGE_PAGE = 2 << 20  # bytes
CHUNK = 32 << 20  # bytes allocated at a time; pages that are never written take no memory
SCRATCH = "scratch"  # the owner of memory that all share
APART = 5 * ALIGNMENT  # between arrays, so that those of 2^k bytes do not all share the same lines of the first cache


class Workspace:
    """The memory in which one thread computes.

    An array is requested by its owner (a layer's name) and purpose. The same request gives the same memory, so what a
    layer keeps for its backward pass stays valid until its next forward pass.

    Arrays are parts of a few chunks of huge pages: a step of convnet uses about 3,000 pages of 4 KiB, more than a
    core's TLB holds. The old memory of an array that grows is not used again.
    """

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self._memory: dict[tuple[str, str], NDArray[np.uint8]] = {}
        self._arrays: dict[tuple[str, str], Array] = {}
        self._views: dict[tuple[str, str], tuple[tuple[Array, ...], Any]] = {}
        self._chunk: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0
        self.allocations = 0
        self._blocks: dict[Hashable, BlockWorkspace] = {}

    def block(self, name: Hashable) -> BlockWorkspace:
        """The memory of a block of samples, the same one for the same name."""
        if name not in self._blocks:
            self._blocks[name] = BlockWorkspace(self)
        return self._blocks[name]

    def array(
        self, owner: str, purpose: str, shape: tuple[int, ...], dtype: DTypeLike | None = None, *, zeroed: bool = False
    ) -> Array:
        """An uninitialised array; if `zeroed`, filled with zeros whenever its shape changes. One dtype a purpose."""
        key = (owner, purpose)
        array = self._arrays.get(key)
        if array is not None and array.shape == shape:
            return array
        dtype = np.dtype(dtype or self.dtype)
        size = math.prod(shape) * dtype.itemsize
        memory = self._memory.get(key)
        if memory is None or len(memory) < size:
            memory = self._memory[key] = self._take(size)
        array = self._arrays[key] = memory[:size].view(dtype).reshape(shape)
        if zeroed:
            array.fill(0)
        return array

    def _take(self, size: int) -> NDArray[np.uint8]:
        """New bytes."""
        self.allocations += 1
        if self._used + size > len(self._chunk):
            self._chunk, self._used = huge_pages(max(size, CHUNK)), 0
        start = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT + APART
        return self._chunk[start : start + size]

    def scratch(self, owner: str, purpose: str, shape: tuple[int, ...]) -> Array:
        """An uninitialised array for use within one forward or backward pass of a layer.

        All owners share one memory for a purpose, so that it stays in the cache from layer to layer.
        """
        array = self._arrays.get((owner, purpose))
        if array is None or array.shape != shape:
            array = self._arrays[owner, purpose] = self.array(SCRATCH, purpose, (math.prod(shape),)).reshape(shape)
        return array

    def views(self, owner: str, purpose: str, arrays: tuple[Array, ...], make: Callable[..., Views]) -> Views:
        """make(*arrays), kept until a request with other arrays: for views that take longer to make than to use."""
        known = self._views.get((owner, purpose))
        if known is None or not all(map(is_, known[0], arrays)):
            known = self._views[owner, purpose] = (arrays, make(*arrays))
        views: Views = known[1]
        return views


class BlockWorkspace(Workspace):
    """The memory of one block of samples, whose backward pass comes after the forward passes of other blocks.

    Blocks compute in the memory of `shared`, which stays in the cache. After its forward pass a block takes over what
    its backward pass needs (`keep`), and gets that memory again in later steps.
    """

    def __init__(self, shared: Workspace) -> None:
        super().__init__(shared.dtype)
        self._shared = shared
        self._borrowed: dict[tuple[str, str], Array] = {}  # arrays of `shared`, since the last `keep`
        self._allocations = 0

    def begin(self) -> None:
        """Begin a forward pass. Scratch memory that has grown since the last one is used from now on."""
        self._borrowed.clear()  # by the last backward pass, whose arrays other blocks may keep now
        if self._allocations != self._shared.allocations:
            self._allocations = self._shared.allocations
            self._arrays = {key: array for key, array in self._arrays.items() if key in self._memory}

    def array(
        self, owner: str, purpose: str, shape: tuple[int, ...], dtype: DTypeLike | None = None, *, zeroed: bool = False
    ) -> Array:
        if (owner, purpose) in self._memory:
            return super().array(owner, purpose, shape, dtype, zeroed=zeroed)
        array = self._shared.array(owner, purpose, shape, dtype, zeroed=zeroed)
        if owner != SCRATCH:
            self._borrowed[owner, purpose] = array
        return array

    def _take(self, size: int) -> NDArray[np.uint8]:
        return self._shared._take(size)

    def keep(self, saved: Any, owners: Collection[str] = ()) -> None:
        """Keep the arrays in `saved`, views of them, and all arrays of `owners`; nothing else survives.

        In containers other than tuples, lists and dictionaries an array is not found: then everything is kept.
        """
        arrays: list[Array] = []
        everything = not _find_arrays(saved, arrays)
        starts = {_address(array): key for key, array in self._borrowed.items() if array.size}
        in_order = sorted(starts)
        keys = {key for key in self._borrowed if everything or key[0] in owners}
        for array in arrays:
            if array.size and (place := bisect_right(in_order, _address(array))):
                start = in_order[place - 1]
                if _address(array) < start + self._borrowed[starts[start]].nbytes:
                    keys.add(starts[start])
        for key in keys:
            self._memory[key] = self._shared._memory.pop(key)
            self._arrays[key] = self._shared._arrays.pop(key)
        self._borrowed.clear()


def _address(array: Array) -> int:
    """That of the first value."""
    address: int = array.__array_interface__["data"][0]
    return address


def _find_arrays(value: Any, arrays: list[Array]) -> bool:
    """Append all arrays in nested tuples, lists and dictionaries; whether nothing in there can hide another one."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return not value.dtype.hasobject
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        complete = [_find_arrays(part, arrays) for part in value]  # a list: `all` alone would stop early
        return all(complete)
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def huge_pages(size: int) -> NDArray[np.uint8]:
    """`size` bytes, in transparent huge pages where Linux has them; LimitError without memory."""
    try:
        memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise out_of_memory(size, "computing", error) from None
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, np.uint8)
    start = -everything.ctypes.data % HUGE_PAGE
    return everything[start : start + size]


def out_of_memory(size: int, purpose: str, error: BaseException) -> LimitError:
    why = f" ({error.strerror})" if isinstance(error, OSError) else ""
    return LimitError(f"out of memory allocating {size / (1 << 20):,.0f} MiB for {purpose}{why}; {MEMORY}")


def aligned_copy(array: Array) -> Array:
    """A copy that starts on a cache line."""
    copy = aligned_zeros(array.size, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def aligned_zeros(length: int, dtype: DTypeLike = np.float32) -> Array:
    """A vector of zeros that starts on a cache line; LimitError without memory."""
    size = length * np.dtype(dtype).itemsize
    try:
        memory = np.zeros(size + ALIGNMENT, np.uint8)
    except (MemoryError, OverflowError, ValueError) as error:  # ValueError: NumPy has no arrays of this size
        raise out_of_memory(size, "parameters or gradients", error) from None
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype)
