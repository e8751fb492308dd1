"""Plain HDF5 files, written without libhdf5: datasets that lie whole and unchanged at a known place of the file.

libhdf5 writes other bytes in each of its versions (1.14.2, 1.14.6 and 2.0 all differ, also with `libver` given), and
an older one cannot open some of them; reading a forged file it may crash. So the few structures that are needed here
are written by hand, after the HDF5 File Format Specification, version 3.0, whose sections are named below. The same
contents always give the same bytes, any HDF5 since 1.8 opens them, and whoever knows the offsets needs no HDF5.

    [user block]  superblock  object header of each group and dataset  array  array ...

Groups keep their links in their object header ("compact"). Arrays begin at multiples of 64 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

Tree: TypeAlias = Mapping[str, Union[NDArray[Any], "Tree"]]
Message: TypeAlias = tuple[int, bytes]

ALIGNMENT = 64
UNDEFINED = 2**64 - 1  # the address of nothing
SUPERBLOCK_SIZE = 48
# Class and version, bit field, size, properties (IV.A.2.d): little-endian two's complement and IEEE numbers.
DATATYPES = {
    np.dtype(np.uint8): struct.pack("<B3BI2H", 0x10, 0x00, 0, 0, 1, 0, 8),
    np.dtype("<i8"): struct.pack("<B3BI2H", 0x10, 0x08, 0, 0, 8, 0, 64),
    np.dtype("<f4"): struct.pack("<B3BI2H4BI", 0x11, 0x20, 31, 0, 4, 0, 32, 23, 8, 0, 23, 127),
}


def plain_hdf5(
    tree: Tree, attributes: Mapping[str, str | int], user_block: int = 0
) -> tuple[list[bytes | memoryview], dict[str, int]]:
    """The parts of a file, in order, behind a user block, and the offset in the file of each dataset by its path.

    tree: arrays (uint8, int64 or float32) and groups by name, none with a "/"; attributes: those of the root group.
    The arrays are not copied when they are contiguous. An empty one has no place: its offset is that of the next.
    """
    nodes = list(_walk("", tree))
    arrays = {path: np.ascontiguousarray(node) for path, node in nodes if not isinstance(node, Mapping)}
    unplaced = dict.fromkeys((path for path, _ in nodes), 0)
    messages = {path: _messages(path, node, unplaced, unplaced, attributes) for path, node in nodes}
    headers, end = {}, SUPERBLOCK_SIZE
    for path, own in messages.items():
        headers[path] = end
        end += len(_object_header(own))
    places = {}
    for path, array in arrays.items():
        places[path] = end + -end % ALIGNMENT
        end = places[path] + array.nbytes
    written = [_superblock(user_block, end, headers[""])]
    written += [_checked(_object_header(_messages(path, node, headers, places, attributes))) for path, node in nodes]
    parts: list[bytes | memoryview] = [b"".join(written)]
    position = len(parts[0])
    for path, array in arrays.items():
        parts += [bytes(places[path] - position), array.reshape(-1).view(np.uint8).data]
        position = places[path] + array.nbytes
    return parts, {path: user_block + place for path, place in places.items()}


def _walk(path: str, node: NDArray[Any] | Tree) -> Iterator[tuple[str, NDArray[Any] | Tree]]:
    """Every group and dataset with its path, "" for the root, each group before what it holds."""
    yield path, node
    if isinstance(node, Mapping):
        for name, member in node.items():
            yield from _walk(f"{path}/{name}" if path else name, member)


def _messages(
    path: str,
    node: NDArray[Any] | Tree,
    headers: Mapping[str, int],
    places: Mapping[str, int],
    attributes: Mapping[str, str | int],
) -> list[Message]:
    """The header messages of a group or dataset, by their numbers; `headers` and `places` are addresses by path."""
    if isinstance(node, Mapping):
        found = [
            (0x02, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)),  # link info: no index, all links are here
            (0x0A, struct.pack("<BB", 0, 0)),  # group info
        ]
        found += [(0x06, _link(name, headers[f"{path}/{name}" if path else name])) for name in node]
        return found if path else found + [(0x0C, _attribute(name, value)) for name, value in attributes.items()]
    return [
        (0x01, _dataspace(node.shape)),
        (0x03, DATATYPES[node.dtype]),
        (0x05, struct.pack("<BB", 3, 0x0A)),  # fill value: the default
        (
            0x08,
            struct.pack("<BBQQ", 3, 1, places[path] if node.nbytes else UNDEFINED, node.nbytes),
        ),  # layout: contiguous
    ]


def _link(name: str, header: int) -> bytes:
    """A hard link with a name in UTF-8 (IV.A.2.g)."""
    encoded = name.encode(errors="backslashreplace")  # lone surrogates have no UTF-8
    return struct.pack("<BBBH", 1, 0x11, 1, len(encoded)) + encoded + struct.pack("<Q", header)


def _dataspace(shape: Sequence[int]) -> bytes:
    """Extents, none for a scalar (IV.A.2.b)."""
    return struct.pack(f"<4B{len(shape)}Q", 2, len(shape), 0, 1 if shape else 0, *shape)


def _attribute(name: str, value: str | int) -> bytes:
    """A scalar attribute: text of fixed length in UTF-8, or int64 (IV.A.2.m)."""
    if isinstance(value, str):
        data = value.encode() + b"\0"
        datatype = struct.pack("<B3BI", 0x13, 0x10, 0, 0, len(data))
    else:
        data, datatype = struct.pack("<q", value), DATATYPES[np.dtype("<i8")]
    dataspace, encoded = _dataspace(()), name.encode() + b"\0"
    sizes = struct.pack("<BBHHHB", 3, 0, len(encoded), len(datatype), len(dataspace), 1)
    return sizes + encoded + datatype + dataspace + data


def _object_header(messages: Sequence[Message]) -> bytes:
    """An object header of version 2 in one block (IV.A.1.b), with room for its checksum."""
    body = b"".join(struct.pack("<BHB", number, len(data), 0) + data for number, data in messages)
    return b"OHDR" + struct.pack("<BBI", 2, 0x02, len(body)) + body + bytes(4)


def _superblock(user_block: int, end: int, root: int) -> bytes:
    """A superblock of version 2 (II.A); only the end of the file is counted from its beginning."""
    addresses = struct.pack("<4Q", user_block, UNDEFINED, user_block + end, root)
    return _checked(b"\x89HDF\r\n\x1a\n" + struct.pack("<4B", 2, 8, 8, 0) + addresses + bytes(4))


def _checked(block: bytes) -> bytes:
    """The block with its checksum in its last four bytes."""
    return block[:-4] + struct.pack("<I", lookup3(block[:-4]))


def lookup3(data: bytes) -> int:
    """Bob Jenkins's hash of 2006 (`hashlittle`, initial value 0), the checksum of HDF5's metadata; data: not empty."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    last = (len(data) - 1) // 12 * 12  # the last 1 to 12 bytes are mixed in another way
    for x, y, z in struct.iter_unpack("<3I", data[:last]):
        a, b, c = a + x & mask, b + y & mask, c + z & mask
        for bits in (4, 6, 8, 16, 19, 4):
            a = (a - c & mask) ^ (c << bits & mask | c >> 32 - bits)
            a, b, c = b, c + b & mask, a  # the three take turns
    x, y, z = struct.unpack("<3I", data[last:].ljust(12, b"\0"))
    a, b, c = a + x & mask, b + y & mask, c + z & mask
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << bits & mask | b >> 32 - bits) & mask
        a, b, c = b, c, a
    return int(b)
