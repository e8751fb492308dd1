"""Checkpoints, format version 2: one file with a checksum and an index.

    bytes 0 to 511   user block: magic, bytes behind the block, bytes of the index, SHA-256 (see `_header`), zeros
    then             plain HDF5 (see dptrain.system.hdf5) for any HDF5 program: a group for each vector (parameters,
                     buffers, the optimizer's slots such as momentum) with its tensors, /<vector>/<layer>.<name>,
                     float32 in natural shapes (convolution (O, C, KH, KW), linear (O, F))
    at the end       the index, JSON in UTF-8: everything else, and for each vector its tensors in order: name,
                     shape, offset in the file

A reader needs the index and the bytes at its offsets, not libhdf5. It checks every value: the hash shows that a file is
complete, not who wrote it. Keys and vectors that a later program has added are ignored and reported. Files of earlier
formats are read by dptrain.checkpoint.migrate.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

import dptrain
from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.checkpoint.migrate import EARLIER_NAMES, Tensors, algorithms, header_1, layer_lines, read_version_1
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, Layouts, Progress, TrainingState
from dptrain.data.manifest import LARGEST_IMAGE
from dptrain.errors import BrokenCheckpointError, CheckpointError, LaterVersionError
from dptrain.system import files
from dptrain.system.fields import Bounds, Sha256, Text, from_json
from dptrain.system.hdf5 import plain_hdf5
from dptrain.system.text import shown

FORMAT, VERSION = "dptrain-checkpoint", 2
ANY_MAGIC = re.compile(rb"dptrain checkpoint v([1-9]\d{0,2})\n\0*\Z")
MAGIC = b"dptrain checkpoint v2\n\0\0"
HEADER = struct.Struct("<24sQQ32s")  # magic, bytes behind the block, of these the index's, SHA-256 of all but itself
USER_BLOCK = 512
LONGEST_INDEX = 64 * files.MIB
LongText = Annotated[str, Text(4 * files.MIB)]
Positive = Annotated[int, Bounds(1)]


@dataclass(frozen=True)
class Origin:
    """Where a state comes from. It is enough to rebuild the network, to classify an image, and to refuse other data.

    `spec` is the network's identity, `tuning` its algorithms, `architecture` a line for people on each layer. `mean`
    and `std` of each channel, of pixels scaled to 0..1, normalise images. Files of earlier formats have no `spec`,
    `tuning`, `mean` and `std`.
    """

    config: LongText  # TOML
    architecture: tuple[LongText, ...]
    input_shape: tuple[Annotated[int, Bounds(1, LARGEST_IMAGE)], ...]
    classes: tuple[str, ...]
    data_name: str
    manifest_sha256: Sha256
    steps_per_epoch: Positive
    environment: dict[str, str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    model_files: dict[str, Sha256] = field(default_factory=dict)  # of a user's model: file name to SHA-256
    model_output_sha256: str = ""  # of what it computes from fixed images with its initial parameters
    spec: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)

    def difference(self, other: Origin) -> str:
        """The first layer in which the network of another origin differs, in words; "" for the same network."""
        ours, theirs = self.architecture, other.architecture
        if self.spec and other.spec:
            if self.spec == other.spec:
                return ""
            if ours == theirs:  # a layer's spec may say more than its line
                ours, theirs = (tuple(map(json.dumps, one.spec.get("layers", [one.spec]))) for one in (self, other))
        else:
            ours, theirs = tuple(layer_lines(ours)), tuple(layer_lines(theirs))
        pairs = itertools.zip_longest(ours, theirs, fillvalue="nothing")
        return next((f"it has {one}, expected {new}" for one, new in pairs if one != new), "")


@dataclass(frozen=True)
class Entry:
    """The place of a tensor in the file."""

    name: str
    shape: tuple[Positive, ...]
    offset: Annotated[int, Bounds(USER_BLOCK)]


ENTRIES: Any = tuple[Entry, ...]


@dataclass(frozen=True)
class Index:
    """The index. A vector is a list of entries, or an unknown value that a later program wrote."""

    format: Literal["dptrain-checkpoint"]
    version: Literal[2]
    writer: Annotated[str, Text(80)]
    state: Progress
    origin: Origin
    params_sha256: Sha256
    vectors: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A state with its origin, the layouts of its vectors, and notes for people on ignored contents."""

    state: TrainingState
    origin: Origin
    layouts: Layouts
    notes: tuple[str, ...] = ()
    writer: str = ""

    @property
    def layout(self) -> Layout:
        """The layout of the parameters."""
        return self.layouts[PARAMETERS]

    def check_vectors(self, layouts: Layouts, path: Path) -> None:
        """CheckpointError unless it has these vectors, each with the same tensors in the same order."""
        for name, layout in layouts.items():
            if name not in self.layouts:
                raise CheckpointError(
                    f"{shown(path)}: it has the vectors {shown(', '.join(self.layouts), 200)}, expected "
                    f"{', '.join(layouts)}: it belongs to another optimizer or network"
                )
            pairs = itertools.zip_longest(self.layouts[name].shapes.items(), layout.shapes.items(), fillvalue="nothing")
            for there, here in pairs:
                if there != here:
                    raise CheckpointError(
                        f"{shown(path)}: its {name} do not fit its architecture: it has {shown(there, 200)}, "
                        f"expected {shown(here, 200)}"
                    )

    def restricted(self, layouts: Layouts, path: Path) -> Checkpoint:
        """A copy with only these vectors, after `check_vectors`; a note lists the dropped ones."""
        self.check_vectors(layouts, path)
        dropped = [f"vectors.{name}" for name in self.layouts if name not in layouts]
        return replace(
            self,
            state=TrainingState({name: self.state.vectors[name] for name in layouts}, self.state.progress),
            layouts=layouts,
            notes=(*self.notes, *_not_read(self.writer, dropped)),
        )


def checkpoint_bytes(state: TrainingState, origin: Origin, layouts: Layouts) -> bytes:
    """The whole file."""
    tensors = {vector: layout.views(state.vectors[vector]) for vector, layout in layouts.items()}
    arrays = {f"{vector}/{name}": view for vector, views in tensors.items() for name, view in views.items()}
    attributes: dict[str, str | int] = {
        "format": FORMAT,
        "version": VERSION,
        "step": state.step,
        "epoch": state.step // origin.steps_per_epoch,
        "params_sha256": state.params_sha256,
    }
    body, offsets = plain_hdf5(arrays, attributes, USER_BLOCK)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "writer": f"dptrain {dptrain.__version__}",
        "state": vars(state.progress),
        "origin": vars(origin),
        "params_sha256": state.params_sha256,
        "vectors": {
            vector: [
                {"name": name, "shape": view.shape, "offset": offsets[f"{vector}/{name}"]}
                for name, view in views.items()
            ]
            for vector, views in tensors.items()
        },
    }
    encoded = json.dumps(index, indent=1, allow_nan=False).encode()
    return b"".join([_header([body, encoded], len(encoded)), body, encoded])


def _header(parts: Sequence[bytes | memoryview], index_size: int) -> bytes:
    """The user block of a file whose other parts are these."""
    unhashed = HEADER.pack(MAGIC, sum(map(len, parts)), index_size, bytes(32))[:-32]
    digest = hashlib.sha256(unhashed)
    for part in parts:
        digest.update(part)
    return (unhashed + digest.digest()).ljust(USER_BLOCK, b"\0")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint whose checksum is right.

    CheckpointError when it cannot be read, BrokenCheckpointError if damaged, LaterVersionError if it is too new.
    """
    version, content = _read_verified(Path(path))
    try:
        return _checkpoint(*(_read_index(content) if version == VERSION else read_version_1(content)))
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: not a readable checkpoint: {error}") from error


def _read_verified(path: Path) -> tuple[int, bytes]:
    """Version and content of a file whose length and SHA-256 are those in its header."""
    place = shown(path)
    try:
        with files.open_regular(path) as file:
            header, size = file.read(USER_BLOCK), files.size_of(file)
            magic = ANY_MAGIC.fullmatch(header[:24])
            if magic is None or len(header) < USER_BLOCK:
                raise BrokenCheckpointError(
                    f"{place}: not a dptrain checkpoint: it does not begin with {MAGIC[:18].decode()!r} and a version"
                )
            version = int(magic[1])
            if version > VERSION:
                raise LaterVersionError(
                    f"{place}: checkpoint format version {version}, this program reads versions 1 to {VERSION}: a "
                    "later dptrain wrote it; use that one"
                )
            _, stated, index_size, _ = HEADER.unpack_from(header)
            content = b""
            if stated == size - USER_BLOCK:  # else it is damaged
                file.seek(0)
                content = files.read_whole(file)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from error
    body = memoryview(content)[USER_BLOCK:]
    expected = _header([body], index_size) if version == VERSION else header_1(body).ljust(USER_BLOCK, b"\0")
    if not content or header != expected:
        raise BrokenCheckpointError(
            f"{place}: {size - USER_BLOCK:,} bytes after its header do not have the length and SHA-256 stated there: "
            "cut short or altered"
        )
    return version, content


def _read_index(content: bytes) -> tuple[dict[str, Any], Tensors]:
    """Index and tensors of a file whose header is right; ValueError unless the index is right.

    A vector whose tensors cannot be read, as a later program may write, stays in the index.
    """
    index_size = HEADER.unpack_from(content)[2]
    end = len(content) - index_size
    if not 0 < index_size <= LONGEST_INDEX or end < USER_BLOCK:
        raise ValueError(f"an index of {index_size:,} bytes, expected at most {LONGEST_INDEX:,}")
    index = files.parse_json(content[end:])
    tensors: dict[str, dict[str, Array]] = {}
    spans: list[tuple[int, int]] = []
    for vector, written in from_json(Index, index, unknown=[]).vectors.items():
        try:
            entries: tuple[Entry, ...] = from_json(ENTRIES, written, f"vectors.{shown(vector, 80)}")
        except ValueError:
            if EARLIER_NAMES.get(vector, vector) in (PARAMETERS, BUFFERS):
                raise
            continue  # a later program wrote it
        if len({entry.name for entry in entries}) < len(entries):
            raise ValueError(f"vectors.{shown(vector, 80)}: two tensors have the same name")
        spans += [(entry.offset, entry.offset + 4 * math.prod(entry.shape)) for entry in entries]
        if max((stop for _, stop in spans), default=end) <= end:
            tensors[vector] = {
                entry.name: np.frombuffer(content, "<f4", math.prod(entry.shape), entry.offset).reshape(entry.shape)
                for entry in entries
            }
    limits = [start for start, _ in sorted(spans)[1:]] + [end]
    if any(stop > limit for (_, stop), limit in zip(sorted(spans), limits, strict=False)):
        raise ValueError("vectors: tensors that overlap or lie outside the data")
    return index, tensors


def _checkpoint(raw: dict[str, Any], tensors: Tensors) -> Checkpoint:
    """The checkpoint from its index and tensors; ValueError if they are inconsistent."""
    unknown: list[str] = []
    index = from_json(Index, raw, unknown=unknown)
    if missing := vars(Progress()).keys() - raw["state"].keys():
        raise ValueError(f"state.{min(missing)} is missing")
    unknown += [f"vectors.{shown(vector, 80)}" for vector in index.vectors if vector not in tensors]
    named = {PARAMETERS: {}, BUFFERS: {}, **{EARLIER_NAMES.get(name, name): one for name, one in tensors.items()}}
    layouts = {vector: Layout({name: one.shape for name, one in own.items()}) for vector, own in named.items()}
    state = TrainingState({name: aligned_zeros(layout.size) for name, layout in layouts.items()}, index.state)
    for vector, layout in layouts.items():
        for name, view in layout.views(state.vectors[vector]).items():
            view[...] = named[vector][name]
    _check_progress(index.state)
    _check_origin(index.origin)
    if state.params_sha256 != index.params_sha256:
        raise ValueError("the hash of the parameters is not the one in the file")
    origin = index.origin
    if not origin.spec:
        origin = replace(origin, tuning=algorithms(origin.architecture))
    return Checkpoint(state, origin, layouts, _not_read(index.writer, unknown), index.writer)


def _not_read(writer: str, names: Sequence[str]) -> tuple[str, ...]:
    """A note on parts of a checkpoint that a later program wrote; none without such parts."""
    if not names:
        return ()
    parts = shown(", ".join(names), 300)
    return (f"the checkpoint was written by {shown(writer)} and also contains {parts}, which is ignored",)


def _check_progress(progress: Progress) -> None:
    accuracy = 0.0 if progress.test_accuracy is None else progress.test_accuracy
    if not (progress.epoch_correct <= progress.epoch_samples <= progress.samples_seen and 0 <= accuracy <= 1):
        raise ValueError(f"its state is inconsistent: {vars(progress)}")


def _check_origin(origin: Origin) -> None:
    if math.prod(origin.input_shape) > LARGEST_IMAGE or not origin.input_shape or not origin.classes:
        raise ValueError(f"images {origin.input_shape[:9]} in {len(origin.classes)} classes")
    if len(set(origin.classes)) < len(origin.classes):
        raise ValueError("two classes have the same name")
    if not len(origin.mean) == len(origin.std) in (0, origin.input_shape[0]) or min(origin.std, default=1) <= 0:
        raise ValueError(f"mean and std are {origin.mean[:9]} and {origin.std[:9]}, expected one value per channel")
    files.parse_toml(origin.config)
