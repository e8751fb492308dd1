"""Samples and filters as PNG files in memory."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptrain.arrays.memory import Array
from dptrain.data.manifest import Manifest
from dptrain.data.shard import read_shard

LARGEST = 96  # pixels of a side; larger pictures are reduced
GREY, COLOR = 0, 2  # color types of PNG

Picture = NDArray[np.uint8]


def png(picture: Picture) -> bytes:
    """The PNG file of a picture (H, W), grey, or (H, W, 3), red, green and blue (ISO/IEC 15948)."""
    height, width = picture.shape[:2]
    rows = picture.reshape(height, -1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # filter 0 before each row: none
    kind = GREY if picture.ndim == 2 else COLOR
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(filtered.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def data_uri(picture: Picture) -> str:
    """The picture as the address of an image in HTML."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def sample_picture(image: Picture) -> Picture:
    """A sample (C, H, W) as a picture of at most `LARGEST` pixels a side.

    One channel is grey, three are red, green and blue; of any other number the first is shown.
    """
    factor = -(-max(image.shape[1:]) // LARGEST)
    if factor > 1:
        height, width = (max(1, extent // factor) for extent in image.shape[1:])
        rows, columns = (min(factor, extent) for extent in image.shape[1:])
        blocks = image[:, : height * rows, : width * columns].reshape(-1, height, rows, width, columns)
        image = np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]


def filter_pictures(weight: Array, most: int) -> list[Picture]:
    """At most `most` filters of a weight (O, C, KH, KW) as pictures (KH, KW, 3), or (KH, KW) unless C is 3.

    Each filter is scaled alone, so that its largest absolute value is black or white, and 0 is grey.
    """
    kernels = weight[:most]
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    scaled = np.rint(127.5 + 127.5 * kernels / np.where(largest > 0, largest, 1)).astype(np.uint8)
    return [sample_picture(kernel) for kernel in scaled]


def images_of_test_split(folder: Path, manifest: Manifest, index: Iterable[int]) -> dict[int, Picture]:
    """The test images (C, H, W) with these numbers, by number. DataError for a shard that cannot be read."""
    wanted = set(index)
    found: dict[int, Picture] = {}
    for shard in range(manifest.shard_count):
        if len(found) == len(wanted):
            break
        samples = read_shard(folder, manifest, "test", shard)
        for row in np.flatnonzero(np.isin(samples.index, list(wanted))):
            found[int(samples.index[row])] = samples.images[row].copy()
    return found
