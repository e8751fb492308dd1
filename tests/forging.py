"""Forged files for fuzzing: mutations of valid checkpoints, shards and manifests with corrected checksums."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from dptrain.checkpoint.format import HEADER, MAGIC, USER_BLOCK
from dptrain.checkpoint.migrate import MAGIC_1, header_1
from dptrain.data.manifest import MANIFEST, REQUIRED

NUMBERS = (0, 1, -1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "../../etc/passwd",
    "a/b",
    "\x1b[31m\n\u202e",
    "\0",
    [],
    {},
    [[]],
    {"a": 1},
    "é" * 2000,
)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "[" * 5000, '{"a":' * 5000, '"\\ud800"', "-", "0x1")
MARK = "@@raw@@"


def forged_bytes(content: bytes, random_: random.Random) -> bytes:
    """The data with one to four changes: bits, bytes, whole numbers, or pieces copied, removed or moved."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        place = random_.randrange(len(changed))
        kind = random_.randrange(6)
        if kind == 0:
            changed[place] ^= 1 << random_.randrange(8)
        elif kind == 1:
            changed[place] = random_.choice((0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)))
        elif kind == 2:
            size = random_.choice((2, 4, 8))
            value = random_.choice((0, 1, 2**8, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)) % 2 ** (8 * size)
            changed[place : place + size] = value.to_bytes(size, "little")
        elif kind == 3:
            piece = changed[place : place + random_.randint(1, 64)]
            there = random_.randrange(len(changed))
            changed[there : there + len(piece)] = piece
        elif kind == 4 and len(changed) > 1024:
            del changed[place : place + random_.randint(1, 64)]
        else:
            changed[place:place] = random_.randbytes(random_.randint(1, 16))
    return bytes(changed)


def forged_json(value: Any, random_: random.Random) -> str:
    """JSON text of the value, with changes in one to three places chosen from its structure."""
    value = json.loads(json.dumps(value))
    raw: list[str] = []
    for _ in range(random_.randint(1, 3)):
        holders: list[tuple[Any, Any]] = []
        _collect(value, holders)
        if not holders:
            break
        holder, key = random_.choice(holders)
        kind = random_.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif kind == 1:
            holder[f"{key}{random_.choice(('2', '', chr(0), '/'))}"] = holder[key]
        elif kind in (2, 3):
            holder[key] = random_.choice(NUMBERS)
        elif kind == 4:
            holder[key] = random_.choice(OTHERS)
        elif kind == 5:
            raw.append(random_.choice(RAW))
            holder[key] = f"{MARK}{len(raw) - 1}"
        elif kind == 6:
            holder[key] = json.loads(json.dumps(random_.choice(holders)[0]))
        elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] += random_.choice((-1, 1, 4, -4, 100, 10**6))
        else:
            holder[key] = [holder[key]] * random_.choice((1, 2, 100))
    text = json.dumps(value)
    for number, piece in enumerate(raw):
        text = text.replace(f'"{MARK}{number}"', piece)
    return text


def _collect(value: Any, holders: list[tuple[Any, Any]]) -> None:
    """Every place in a JSON value: its container and its key."""
    if isinstance(value, dict | list):
        for key, member in list(value.items() if isinstance(value, dict) else enumerate(value)):
            holders.append((value, key))
            _collect(member, holders)


def forged_checkpoint(content: bytes, random_: random.Random) -> bytes:
    """A checkpoint of either version, forged in its data, its index or its header."""
    if content.startswith(MAGIC_1):
        body = forged_bytes(content[USER_BLOCK:], random_)
        return header_1(body).ljust(USER_BLOCK, b"\0") + body
    size = HEADER.unpack_from(content)[2]
    data, index = content[USER_BLOCK:-size], content[-size:]
    kind = random_.randrange(10)
    if kind < 7:
        index = forged_json(json.loads(index), random_).encode("utf-8", "surrogatepass")
    elif kind < 9:
        index = forged_bytes(index, random_)
    else:
        data = forged_bytes(data, random_)
    stated = len(index) if kind else random_.choice((0, 1, len(index) + 1, len(data) + len(index) + 1, 2**64 - 1))
    unproven = HEADER.pack(MAGIC, len(data) + len(index), stated, bytes(32))[:-32]
    digest = hashlib.sha256(unproven + data + index).digest()
    return (unproven + digest).ljust(USER_BLOCK, b"\0") + data + index


def forge_data_set(folder: Path, random_: random.Random) -> None:
    """Forge a shard, the manifest or both of a data set; the manifest's hashes of files are corrected."""
    raw = json.loads((folder / MANIFEST).read_text())
    kind = random_.randrange(4)
    if kind < (3 if raw["version"] == 1 else 1):
        entry = random_.choice(raw["splits"][random_.choice(REQUIRED)])
        content = forged_bytes((folder / entry["file"]).read_bytes(), random_)
        (folder / entry["file"]).write_bytes(content)
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(raw)
    if kind == 3 or (raw["version"] > 1 and kind):
        text = forged_json(raw, random_)
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
