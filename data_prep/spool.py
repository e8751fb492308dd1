"""Images on the disk in the order of their source, so that packing needs memory for one shard and not for the set."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.errors import LimitError
from dptrain.system.text import shown

from .bounded import Readable

BLOCK = 4 << 20  # bytes of pixels in memory


class Spool:
    """Images uint8 (n, C, H, W) in a file without a name, which is gone with the process.

    It is on the disk of the data set `out`, which needs free space for twice the images. /tmp may be memory.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, out: Path, image_shape: tuple[int, int, int]) -> None:
        self._folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - kept
        except OSError as error:
            raise self._failed(error) from error
        weakref.finalize(self, self._file.close)
        self._count, self._image_shape = 0, image_shape

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, H, W), of the images so far."""
        return (self._count, *self._image_shape)

    @property
    def size(self) -> int:
        """The number of pixels."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self._count

    def append(self, images: NDArray[np.uint8]) -> None:
        """Add images (n, C, H, W); LimitError when the disk is full."""
        if images.shape[1:] != self._image_shape or images.dtype != self.dtype:
            raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 (n, *{self._image_shape})")
        content = np.ascontiguousarray(images).reshape(-1).data
        try:
            while content:
                content = content[os.write(self._file.fileno(), content) :]
        except OSError as error:
            raise self._failed(error) from error
        self._count += len(images)

    def allocate(self, count: int) -> None:
        """Make it this many images long, to be set by number, also by forked processes."""
        self._count = count

    def __setitem__(self, row: int, image: NDArray[np.uint8]) -> None:
        """Store one image (C, H, W); LimitError when the disk is full."""
        assert image.shape == self._image_shape
        assert 0 <= row < self._count
        try:
            if os.pwrite(self._file.fileno(), image.reshape(-1).data, row * image.size) != image.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a write is cut short on a full disk
        except OSError as error:
            raise self._failed(error) from error

    def read_from(self, stream: Readable, count: int, *, channels_last: bool = False) -> int:
        """Append up to `count` images from a stream of their bytes, (C, H, W) or (H, W, C); returns how many it has."""
        channels, height, width = self._image_shape
        size = channels * height * width
        at_once = max(1, BLOCK // size)
        for start in range(0, count, at_once):
            wanted = min(at_once, count - start)
            block = stream.read(wanted * size)
            if len(block) != wanted * size:
                return start + len(block) // size
            images = np.frombuffer(block, np.uint8)
            if channels_last:
                self.append(images.reshape(wanted, height, width, channels).transpose(0, 3, 1, 2))
            else:
                self.append(images.reshape(wanted, *self._image_shape))
        return count

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> NDArray[np.uint8]:
        """The images of these numbers, in this order."""
        if isinstance(rows, slice):
            rows = np.arange(self._count)[rows]
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        size = images[:1].size
        try:
            for image, row in zip(images, rows.tolist(), strict=True):
                if not 0 <= row < self._count:
                    raise IndexError(f"image {row} of {self._count}")
                if os.preadv(self._file.fileno(), [image.reshape(-1).data], row * size) != size:
                    raise OSError(0, "a read ended too early")  # on a local disk only after an error
        except OSError as error:
            raise self._failed(error) from error
        return images

    def _failed(self, error: OSError) -> LimitError:
        """Not a DataError: sources put the path of their file before those."""
        what = f"images cannot be stored there for packing: {error.strerror}"
        return LimitError(f"{shown(self._folder)}: {what}; free some space or choose another folder")


@dataclass(frozen=True)
class SpooledRows:
    """Some images of a spool, (n, C, H, W)."""

    spool: Spool
    rows: NDArray[np.intp]
    dtype = Spool.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.rows), *self.spool.shape[1:]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> NDArray[np.uint8]:
        return self.spool[self.rows[rows]]
