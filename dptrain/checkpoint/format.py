"""Checkpoints, format version 2: one file that proves itself, and says where in it everything lies.

    bytes 0 to 511   user block: magic, bytes behind the block, bytes of the index, SHA-256 (see `_header`), zeros
    then             plain HDF5 (see dptrain.system.hdf5) for any HDF5 program: a group for each vector (parameters,
                     buffers, the optimizer's slots such as momentum) with its tensors, /<vector>/<layer>.<name>,
                     float32 in natural shapes (convolution (O, C, KH, KW), linear (O, F))
    at the end       the index, JSON in UTF-8: everything else, and for each vector its tensors in order: name,
                     shape, offset in the file

A reader needs the index and the bytes at its offsets; libhdf5 takes no part in it. Reading trusts nothing: the hash
proves that a file is whole, not that a friend wrote it. Keys and vectors that a later program has added are left
alone and reported. Version 1, which libhdf5 wrote (attributes in place of the index), is still read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

import dptrain
from dptrain.arrays.layout import Layout
from dptrain.arrays.memory import Array, aligned_zeros
from dptrain.checkpoint.state import BUFFERS, PARAMETERS, Layouts, Progress, TrainingState
from dptrain.data.manifest import LARGEST_IMAGE
from dptrain.errors import BrokenCheckpointError, CheckpointError, LaterVersionError
from dptrain.system import files
from dptrain.system.fields import Fields
from dptrain.system.hdf5 import plain_hdf5
from dptrain.system.old_hdf5 import TooNewError, read_isolated
from dptrain.system.text import shown

FORMAT = "dptrain-checkpoint"
VERSION = 2
ANY_MAGIC = re.compile(rb"dptrain checkpoint v([1-9]\d{0,2})\n\0*\Z")
MAGIC = b"dptrain checkpoint v2\n\0\0"
HEADER = struct.Struct("<24sQQ32s")  # magic, bytes behind the block, of these the index's, SHA-256 of all but itself
MAGIC_1 = b"dptrain checkpoint v1\n\0\0"
HEADER_1 = struct.Struct("<24sQ32s")  # magic, bytes behind the block, their SHA-256
USER_BLOCK = 512
ALGORITHM = re.compile(r", algorithm='\w+'(?=\))")
LONGEST_INDEX = 64 * files.MIB
LONGEST_CONFIG = 4 * files.MIB  # characters
TENSOR_KEYS = ("name", "shape", "offset")
MOST_AXES = 16  # of a tensor
LONGEST_LINE = files.MIB  # characters of a layer's description
KEYS = ("format", "version", "writer", "state", "origin", "params_sha256", "vectors")
EARLIER_NAMES = {"params": PARAMETERS}  # of vectors, in version 1 and in the first files of version 2
VECTORS_1 = ("params", "momentum")
NOT_IN_VERSION_1: dict[str, object] = {"mean": [], "std": [], "model_files": {}, "model_output_sha256": ""}


@dataclass(frozen=True)
class Origin:
    """Where a state comes from: enough to rebuild its network, to judge an image, and to refuse another run's data.

    `mean` and `std`, per channel of pixels scaled to 0..1, are what the network was trained with; both are empty in a
    checkpoint of version 1, which does not say.
    """

    config: str  # TOML text
    architecture: tuple[str, ...]
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    data_name: str
    manifest_sha256: str
    steps_per_epoch: int
    environment: dict[str, str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    model_files: dict[str, str] = field(default_factory=dict)  # of a user's model: file name to SHA-256
    model_output_sha256: str = ""  # of what it computes from fixed images with its initial parameters


@dataclass(frozen=True)
class Checkpoint:
    """A state with its origin, the layouts of its vectors, and notes for people on what was not read."""

    state: TrainingState
    origin: Origin
    layouts: Layouts
    notes: tuple[str, ...] = ()

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
                    f"{', '.join(layouts)}: it is of another optimizer or network"
                )
            pairs = itertools.zip_longest(self.layouts[name].shapes.items(), layout.shapes.items(), fillvalue="nothing")
            for there, here in pairs:
                if there != here:
                    raise CheckpointError(
                        f"{shown(path)}: its {name} are not those of its architecture: it has {shown(there, 200)}, "
                        f"expected {shown(here, 200)}"
                    )


def checkpoint_bytes(state: TrainingState, origin: Origin, layouts: Layouts) -> bytes:
    """The whole file."""
    vectors = {vector: layout.views(state.vectors[vector]) for vector, layout in layouts.items()}
    paths = {vector: {name: f"{vector}/{_link_name(name)}" for name in views} for vector, views in vectors.items()}
    arrays = {paths[vector][name]: view for vector, views in vectors.items() for name, view in views.items()}
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
                {"name": name, "shape": view.shape, "offset": offsets[paths[vector][name]]}
                for name, view in views.items()
            ]
            for vector, views in vectors.items()
        },
    }
    encoded = json.dumps(index, indent=1, allow_nan=False).encode()
    return b"".join([_header([body, encoded], len(encoded)), body, encoded])


def _link_name(name: str) -> str:
    """A tensor's name as HDF5 can hold it: there "/" parts groups, and NUL and "." mean something else."""
    escaped = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    escaped = escaped.encode(errors="backslashreplace").decode()  # a lone surrogate
    return escaped.replace(".", "%2E") if escaped in (".", "..") else escaped


def _header(parts: Sequence[bytes | memoryview], index_size: int) -> bytes:
    """The user block of a file whose other parts are these."""
    unproven = HEADER.pack(MAGIC, sum(map(len, parts)), index_size, bytes(32))[:-32]
    digest = hashlib.sha256(unproven)
    for part in parts:
        digest.update(part)
    return (unproven + digest.digest()).ljust(USER_BLOCK, b"\0")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that proves itself.

    CheckpointError when it cannot be read, BrokenCheckpointError if torn, LaterVersionError if only too new.
    """
    version, content = _proven(Path(path))
    try:
        return _read_index(content) if version == VERSION else _read_version_1(content)
    except TooNewError as error:
        raise LaterVersionError(f"{shown(path)}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: not a readable checkpoint: {error}") from error


def _proven(path: Path) -> tuple[int, bytes]:
    """Version and content of a file, after its length and SHA-256 were held to its header."""
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
            stated = (HEADER if version == VERSION else HEADER_1).unpack_from(header)
            content = b""
            if stated[1] == size - USER_BLOCK:  # else it is torn, and need not be read
                file.seek(0)
                content = files.read_whole(file)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from error
    proven = memoryview(content)[USER_BLOCK:]
    if version == VERSION:
        whole = bool(content) and _header([proven], stated[2]) == header
    else:
        digest = hashlib.sha256(proven).digest()
        whole = bool(content) and HEADER_1.pack(MAGIC_1, len(proven), digest).ljust(USER_BLOCK, b"\0") == header
    if not whole:
        raise BrokenCheckpointError(
            f"{place}: {size - USER_BLOCK:,} bytes after its header do not have the length and SHA-256 stated there: "
            "cut short or altered; use an earlier checkpoint of the run"
        )
    return version, content


def _read_index(content: bytes) -> Checkpoint:
    """The checkpoint in a file whose header is right; ValueError when its index is not."""
    index_size = HEADER.unpack_from(content)[2]
    begin = len(content) - index_size
    if not 0 < index_size <= LONGEST_INDEX or begin < USER_BLOCK:
        raise ValueError(f"an index of {index_size:,} bytes, expected at most {LONGEST_INDEX:,}")
    index = Fields(files.parse_json(content[begin:]))
    index.choice("format", FORMAT)
    index.choice("version", VERSION)
    state, origin, vectors = (index.fields(key) for key in ("state", "origin", "vectors"))
    layouts, found_vectors, not_read = _vectors(vectors, content, begin)
    surplus = [
        f"{what}{key}"
        for what, found, known in (
            ("", index, KEYS),
            ("state.", state, [one.name for one in fields(Progress)]),
            ("origin.", origin, [one.name for one in fields(Origin)]),
        )
        for key in found.unknown(known)
    ] + [f"vectors.{name}" for name in not_read]
    writer = shown(index.text("writer"), 80)
    note = f"the checkpoint was written by {writer} and also holds {shown(', '.join(surplus), 300)}, which is not read"
    found_state = _state_of(state, found_vectors, index.sha256("params_sha256"))
    return Checkpoint(found_state, _origin_of(origin), layouts, (note,) if surplus else ())


def _vectors(raw: Fields, content: bytes, end: int) -> tuple[dict[str, Layout], dict[str, Array], list[str]]:
    """Layouts and flat vectors by name, from tensors that lie before `end` and do not overlap; names of those not read.

    A vector is not read if its tensors have keys that this program does not know, as a later one may write.
    """
    layouts: dict[str, Layout] = {}
    offsets: dict[tuple[str, str], int] = {}
    not_read = []
    for written in map(str, raw.raw):
        name = EARLIER_NAMES.get(written, written)
        if name in layouts:
            raise ValueError(f"vectors.{written}: a second vector {name}")
        tensors = raw.list_of_fields(written)
        if any(tensor.unknown(TENSOR_KEYS) for tensor in tensors):
            not_read.append(shown(written, 80))
            continue
        shapes: dict[str, tuple[int, ...]] = {}
        for tensor in tensors:
            key, shape = tensor.text("name"), tensor.wholes("shape", 1)
            if key in shapes:
                raise ValueError(f"{tensor.where}: a second tensor {shown(key, 80)}")
            if len(shape) > MOST_AXES:
                raise ValueError(f"{tensor.where}: {len(shape)} axes, expected at most {MOST_AXES}")
            shapes[key], offsets[name, key] = shape, tensor.whole("offset", USER_BLOCK)
        layouts[name] = Layout(shapes)
    if PARAMETERS not in layouts:
        raise ValueError(f"vectors.{PARAMETERS} is missing")
    layouts = {PARAMETERS: layouts[PARAMETERS], BUFFERS: Layout({}), **layouts}
    spans = sorted((start, start + 4 * math.prod(layouts[name].shapes[key])) for (name, key), start in offsets.items())
    limits = [begin for begin, _ in spans[1:]] + [end]
    if any(own_end > limit for (_, own_end), limit in zip(spans, limits, strict=False)):
        raise ValueError("vectors: tensors that overlap or lie outside the data")
    vectors = {name: aligned_zeros(layout.size) for name, layout in layouts.items()}
    for (name, key), start in offsets.items():
        part = layouts[name].slices[key]
        vectors[name][part] = np.frombuffer(content, "<f4", part.stop - part.start, start)
    return layouts, vectors, not_read


def _state_of(raw: Fields, vectors: dict[str, Array], params_sha256: str) -> TrainingState:
    accuracy = None if raw.raw.get("test_accuracy") is None else raw.number("test_accuracy")
    progress = Progress(
        step=raw.whole("step"),
        samples_seen=raw.whole("samples_seen"),
        epoch_loss=raw.number("epoch_loss"),
        epoch_correct=raw.whole("epoch_correct"),
        epoch_samples=raw.whole("epoch_samples"),
        test_accuracy=accuracy,
    )
    if not (
        progress.epoch_correct <= progress.epoch_samples <= progress.samples_seen
        and (accuracy is None or 0 <= accuracy <= 1)
    ):
        raise ValueError(
            f"{progress.epoch_correct} correct of {progress.epoch_samples} samples of the epoch and "
            f"{progress.samples_seen} in all, test accuracy {accuracy}: these do not fit each other"
        )
    state = TrainingState(vectors, progress)
    if state.params_sha256 != params_sha256:
        raise ValueError("the parameters do not have the hash that the file states")
    return state


def _origin_of(raw: Fields) -> Origin:
    environment, model_files = raw.fields("environment"), raw.fields("model_files")
    origin = Origin(
        config=raw.text("config", LONGEST_CONFIG),
        # An earlier dptrain also wrote the chosen algorithm, which is no part of an architecture.
        architecture=tuple(ALGORITHM.sub("", line) for line in raw.texts("architecture", LONGEST_LINE)),
        input_shape=raw.wholes("input_shape", 1, LARGEST_IMAGE),
        classes=raw.texts("classes"),
        data_name=raw.text("data_name"),
        manifest_sha256=raw.sha256("manifest_sha256"),
        steps_per_epoch=raw.whole("steps_per_epoch", 1),
        environment={key: environment.text(key) for key in environment.raw},
        mean=raw.numbers("mean"),
        std=raw.numbers("std"),
        model_files={name: model_files.sha256(name) for name in model_files.raw},
        model_output_sha256=raw.text("model_output_sha256"),
    )
    if math.prod(origin.input_shape) > LARGEST_IMAGE or not origin.input_shape or not origin.classes:
        raise ValueError(f"images {origin.input_shape[:9]} in {len(origin.classes)} classes")
    if len(set(origin.classes)) < len(origin.classes):
        raise ValueError("two classes of one name")
    if not len(origin.mean) == len(origin.std) in (0, origin.input_shape[0]) or min(origin.std, default=1) <= 0:
        raise ValueError(f"mean and std are {origin.mean[:9]} and {origin.std[:9]}, expected one of each a channel")
    files.parse_toml(origin.config)
    return origin


def _read_version_1(content: bytes) -> Checkpoint:
    """The checkpoint in a file that libhdf5 wrote; ValueError when it is not one."""
    attributes, datasets = read_isolated(content)
    raw = Fields(attributes)
    raw.choice("format", FORMAT)
    raw.choice("version", 1)
    environment = Fields(files.parse_json(raw.text("environment", LONGEST_CONFIG)), "environment")
    names = raw.texts("parameters")
    if {f"{vector}/{name}" for vector in VECTORS_1 for name in names} != set(datasets) or len(set(names)) < len(names):
        raise ValueError(
            f"it holds datasets {shown(sorted(datasets), 200)}, expected params and momentum of {names[:20]}"
        )
    layout = Layout({name: datasets[f"params/{name}"].shape for name in names})
    vectors: dict[str, Array] = {PARAMETERS: aligned_zeros(layout.size), BUFFERS: aligned_zeros(0)}
    for vector in VECTORS_1:
        flat = vectors[EARLIER_NAMES.get(vector, vector)] = aligned_zeros(layout.size)
        for name, view in layout.views(flat).items():
            dataset = datasets[f"{vector}/{name}"]
            if (dataset.dtype, dataset.shape) != (np.dtype("<f4"), view.shape):
                raise ValueError(f"{vector}/{shown(name, 80)} is {dataset.dtype} {dataset.shape}, expected float32")
            view[...] = dataset
    if isinstance(accuracy := raw.raw.get("test_accuracy"), float) and math.isnan(accuracy):
        raw.raw["test_accuracy"] = None
    state = _state_of(raw, vectors, raw.sha256("params_sha256"))
    origin = _origin_of(Fields({**raw.raw, "environment": environment.raw, **NOT_IN_VERSION_1}))
    layouts = {name: Layout({}) if name == BUFFERS else layout for name in vectors}
    return Checkpoint(state, origin, layouts)
