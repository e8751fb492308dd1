"""Checkpoints, format version 2: one file with a checksum and an index.

    bytes 0 to 511   user block: magic, bytes behind the block, bytes of the index, SHA-256 (see `_header`), zeros
    then             plain HDF5 (see dptrain.system.hdf5) for any HDF5 program: a group for each vector (parameters,
                     buffers, the optimizer's slots such as momentum) with its tensors, /<vector>/<layer>.<name>,
                     float32 in natural shapes (convolution (O, C, KH, KW), linear (O, F))
    at the end       the index, JSON in UTF-8: everything else, and for each vector its tensors in order: name,
                     shape, offset in the file

A reader needs the index and the bytes at its offsets, not libhdf5. It checks every value: the hash shows that a file is
complete, not who wrote it. Keys that a later program has added are ignored and reported. Older files are read by
dptrain.checkpoint.migrate.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import dptrain
from dptrain.arrays.layout import Layout, Shape
from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.checkpoint.migrate import PROGRESS, algorithms, header_1, layer_lines, read_version_1, rename_params
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, Layouts, Progress, TrainingState
from dptrain.data.manifest import Fit, ImageShape, check_images, check_names
from dptrain.errors import BrokenCheckpointError, CheckpointError, DataError, LaterVersionError
from dptrain.nn.network import Network
from dptrain.system import files
from dptrain.system.fields import Bounds, Sha256, Text, from_json
from dptrain.system.hdf5 import plain_arrays, plain_hdf5
from dptrain.system.text import shown

VERSION = 2
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
    and `std` of each channel, of pixels scaled to 0..1, normalise images. Older files have no `spec`, `tuning`,
    `mean` and `std`.
    """

    config: LongText  # TOML
    architecture: tuple[LongText, ...]
    input_shape: ImageShape
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
    fit: Fit = "crop"  # how a picture of another aspect ratio becomes an image: as when the data set was packed

    def difference(self, other: Origin) -> str:
        """The first layer in which the network of another origin differs, in words; "" for the same network."""
        lines = self.architecture, other.architecture
        if self.spec and other.spec:
            compared: list[list[Any]] = [_parts(one.spec) for one in (self, other)]
        else:
            compared = [list(layer_lines(one)) for one in lines]
        for one, new, line, new_line in itertools.zip_longest(*compared, *lines, fillvalue="nothing"):
            if one != new:
                # A layer's spec may state more than its line.
                found, expected = (line, new_line) if line != new_line else (json.dumps(one), json.dumps(new))
                return f"it has {found}, expected {expected}"
        return ""

    def completed(self, network: Network) -> Origin:
        """A copy whose spec has the arguments that were added to the network's layers since: see `Layer.complete`."""
        return replace(self, spec=network.complete(self.spec))


def _parts(spec: Mapping[str, Any]) -> list[Any]:
    """Of the spec of a network: its input, then the layers."""
    layers = spec.get("layers")
    return [spec.get("input_shape"), *(layers if isinstance(layers, list) else [layers])]


@dataclass(frozen=True)
class Entry:
    """The place of a tensor in the file."""

    name: str
    shape: tuple[Positive, ...]
    offset: Annotated[int, Bounds(USER_BLOCK)]


@dataclass(frozen=True)
class Index:
    format: Literal["dptrain-checkpoint"]
    version: Literal[2]
    writer: Annotated[str, Text(80)]
    state: Progress
    origin: Origin
    params_sha256: Sha256
    vectors: dict[str, tuple[Entry, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A state with its origin, the layouts of its vectors, and notes for people on ignored contents."""

    state: TrainingState
    origin: Origin
    layouts: Layouts
    notes: tuple[str, ...] = ()

    def restricted(self, layouts: Layouts, path: Path) -> Checkpoint:
        """A copy with only these vectors, with a note on the others.

        CheckpointError unless it has each of them, with the same tensors in the same order, and all values are finite.
        """
        there, here = ({name: list(one.shapes.items()) for name, one in of.items()} for of in (self.layouts, layouts))
        for name, shapes in here.items():
            if name not in there:
                kept = ", ".join(one for one in there if one not in (PARAMETERS, BUFFERS)) or "none"
                raise CheckpointError(
                    f"{shown(path)}: it has no {name}, which this run keeps from step to step; it has: "
                    f"{shown(kept, 300)}. Give the --optimizer and --average it was trained with, or another --run-dir"
                )
            if there[name] != shapes:
                raise CheckpointError(
                    f"{shown(path)}: of another network: it has {name} {shown(there[name], 300)}, "
                    f"expected {shown(shapes, 300)}"
                )
        ignored = tuple(f"the {name} of the checkpoint is ignored" for name in there if name not in here)
        state = TrainingState({name: self.state.vectors[name] for name in layouts}, self.state.progress)
        if found := state.not_finite(layouts):
            raise CheckpointError(f"{shown(path)}: the {found}; use an earlier checkpoint")
        return replace(self, state=state, layouts=layouts, notes=self.notes + ignored)


def checkpoint_bytes(state: TrainingState, origin: Origin, layouts: Layouts) -> bytes:
    """The whole file."""
    tensors = {vector: layout.views(state.vectors[vector]) for vector, layout in layouts.items()}
    arrays = {f"{vector}/{name}": view for vector, views in tensors.items() for name, view in views.items()}
    attributes: dict[str, str | int] = {
        "format": "dptrain-checkpoint",
        "version": VERSION,
        "step": state.step,
        "epoch": state.step // origin.steps_per_epoch,
        "params_sha256": state.params_sha256,
    }
    body, offsets = plain_hdf5(arrays, attributes, USER_BLOCK)
    vectors = {
        vector: tuple(Entry(name, view.shape, offsets[f"{vector}/{name}"]) for name, view in views.items())
        for vector, views in tensors.items()
    }
    writer = f"dptrain {dptrain.__version__}"
    index = Index("dptrain-checkpoint", 2, writer, state.progress, origin, state.params_sha256, vectors)
    encoded = json.dumps(asdict(index), indent=1, allow_nan=False).encode()
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
    unknown: list[str] = []
    try:
        if version == 1:
            raw, arrays = read_version_1(content)
            index = from_json(Index, raw)
        else:
            end = len(content) - HEADER.unpack_from(content)[2]
            if not USER_BLOCK <= end < len(content) <= end + LONGEST_INDEX:
                raise ValueError(f"an index of {len(content) - end:,} bytes, expected at most {LONGEST_INDEX:,}")
            raw = rename_params(files.parse_json(content[end:]))
            index = from_json(Index, raw, unknown=unknown)
            places = [(f"{name}/{one.name}", one) for name, entries in index.vectors.items() for one in entries]
            arrays = plain_arrays(
                content, {name: ("<f4", one.shape, one.offset) for name, one in places}, USER_BLOCK, end
            )
            if len(arrays) < len(places):
                raise ValueError("two tensors have the same name")
        if missing := set(PROGRESS) - raw["state"].keys():  # not those of a validation split: older files lack them
            raise ValueError(f"state.{min(missing)} is missing")
        _check(index)
        state, layouts = _state(index, arrays)
    except (ValueError, DataError) as error:
        raise CheckpointError(f"{shown(path)}: not a readable checkpoint: {error}") from error
    origin = index.origin if index.origin.spec else replace(index.origin, tuning=algorithms(index.origin.architecture))
    ignored = f"{shown(index.writer)} wrote the checkpoint, with {shown(', '.join(unknown), 300)}, which is ignored"
    return Checkpoint(state, origin, layouts, (ignored,) if unknown else ())


def _read_verified(path: Path) -> tuple[int, bytes]:
    """Version and content of a file whose length and SHA-256 are those in its header, which is checked first."""
    place = shown(path)
    try:
        header, size = files.read_start(path, USER_BLOCK)
        magic = ANY_MAGIC.fullmatch(header[:24])
        if magic is None or len(header) < USER_BLOCK:
            raise BrokenCheckpointError(
                f"{place}: not a dptrain checkpoint: it does not begin with {MAGIC[:18].decode()!r} and a version; "
                "expected a checkpoint (.h5) or a run folder"
            )
        version = int(magic[1])
        if version > VERSION:
            raise LaterVersionError(
                f"{place}: checkpoint format version {version}, this program reads versions 1 to {VERSION}: a later "
                "dptrain wrote it; use that one"
            )
        _, length, index_length, _ = HEADER.unpack_from(header)
        whole = size == USER_BLOCK + length
        content = files.read_bytes(path, size) if whole else header
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from error
    body = memoryview(content)[USER_BLOCK:]
    expected = header_1(body) if version == 1 else _header([body], index_length)
    if not whole or content[:USER_BLOCK] != expected.ljust(USER_BLOCK, b"\0"):
        raise BrokenCheckpointError(
            f"{place}: {size - USER_BLOCK:,} bytes after its header do not have the length and SHA-256 stated there: "
            "cut short or altered"
        )
    return version, content


def _check(index: Index) -> None:
    """ValueError or DataError unless progress and origin are consistent."""
    progress, origin = index.state, index.origin
    correct, samples, seen = progress.epoch_correct, progress.epoch_samples, progress.samples_seen
    accuracies = (progress.test_accuracy, progress.validation_accuracy, progress.best_validation)
    if not (correct <= samples <= seen and all(0 <= (accuracy or 0) <= 1 for accuracy in accuracies)):
        raise ValueError(f"its state is inconsistent: {vars(progress)}")
    check_names(origin.data_name, origin.classes)
    if origin.mean or origin.std:
        check_images(origin.input_shape, origin.mean, origin.std)
    files.parse_toml(origin.config)


def _state(index: Index, arrays: Mapping[str, Array]) -> tuple[TrainingState, Layouts]:
    """The state whose tensors are the arrays, by "vector/tensor"; ValueError if it has not the hash in the index."""
    shapes: dict[str, dict[str, Shape]] = {PARAMETERS: {}, BUFFERS: {}, **{vector: {} for vector in index.vectors}}
    for path, array in arrays.items():
        vector, _, name = path.partition("/")
        shapes.setdefault(vector, {})[name] = array.shape
    layouts = {vector: Layout(one) for vector, one in shapes.items()}
    state = TrainingState({vector: aligned_zeros(layout.size) for vector, layout in layouts.items()}, index.state)
    for vector, layout in layouts.items():
        for name, view in layout.views(state.vectors[vector]).items():
            view[...] = arrays[f"{vector}/{name}"]
    if state.params_sha256 != index.params_sha256:
        raise ValueError("the hash of the parameters is not the one in the file")
    return state, layouts
