"""Checkpoints, format version 1: one HDF5 file that proves itself.

    bytes 0 to 511   HDF5 user block: magic, length and SHA-256 of the rest (see `_header`), zeros
    the rest         HDF5: /params/<layer>.<name> and /momentum/<layer>.<name>, float32 in natural shapes
                     (convolution (O, C, KH, KW), linear (O, F)), and attributes: format, version,
                     params_sha256, parameters (names in the order of the flat vector), epoch, and
                     every other field of TrainingState and Origin under its own name

Reading trusts nothing: the hash proves that a file is whole, not that a friend wrote it.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dptrain.errors import BrokenCheckpointError, CheckpointError
from dptrain.nn.params import ParamLayout
from dptrain.nn.workspace import Array, aligned_zeros
from dptrain.training.state import TrainingState

FORMAT = "dptrain-checkpoint"
VERSION = 1
MAGIC = b"dptrain checkpoint v1\n\0\0"
HEADER = struct.Struct("<24sQ32s")  # magic, bytes after the user block, their SHA-256
USER_BLOCK = 512


@dataclass(frozen=True)
class Origin:
    """Where a state comes from: enough to rebuild its network and to refuse another run's data."""

    config: str  # TOML text
    architecture: tuple[str, ...]
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    data_name: str
    manifest_sha256: str
    steps_per_epoch: int
    environment: dict[str, str]
    model_files: dict[str, str] = field(default_factory=dict)  # of a user's model: file name to SHA-256
    model_output_sha256: str = ""  # of what it computes from fixed images with its initial parameters


@dataclass(frozen=True)
class Checkpoint:
    """A state with its origin, and the names and shapes of its parameters."""

    state: TrainingState
    origin: Origin
    layout: ParamLayout


def checkpoint_bytes(state: TrainingState, origin: Origin, layout: ParamLayout) -> bytes:
    """The whole file. The same state gives the same bytes with one version of HDF5."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest", userblock_size=USER_BLOCK) as file:
        for group, vector in (("params", state.parameters), ("momentum", state.momentum)):
            for name, view in layout.views(vector).items():
                file.create_dataset(f"{group}/{name}", data=view, dtype="<f4", fletcher32=True, chunks=view.shape)
        attributes = {name: value for name, value in vars(state).items() if not isinstance(value, np.ndarray)}
        attributes |= vars(origin) | {
            "format": FORMAT,
            "version": VERSION,
            "params_sha256": state.params_sha256,
            "parameters": list(layout.shapes),
            "epoch": state.step // origin.steps_per_epoch,
            "environment": json.dumps(origin.environment),
            "model_files": json.dumps(origin.model_files),
            "test_accuracy": np.nan if state.test_accuracy is None else state.test_accuracy,
        }
        for name, value in attributes.items():
            file.attrs[name] = value
    body = buffer.getbuffer()[USER_BLOCK:]
    return _header(body).ljust(USER_BLOCK, b"\0") + body


def _header(body: memoryview | bytes) -> bytes:
    return HEADER.pack(MAGIC, len(body), hashlib.sha256(body).digest())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that proves itself; CheckpointError when it cannot be read, BrokenCheckpointError if torn."""
    body = _proven_body(path)
    try:
        with h5py.File(io.BytesIO(body), "r") as file:
            attributes = dict(file.attrs)
            if (found := (attributes["format"], attributes["version"])) != (FORMAT, VERSION):
                raise CheckpointError(f"{path}: format and version {found}, this program reads {(FORMAT, VERSION)}")
            datasets = {group: _plain_datasets(file, group) for group in ("params", "momentum")}
            layout = ParamLayout({name: datasets["params"][name].shape for name in attributes["parameters"]})
            vectors = {group: _vector(members, layout) for group, members in datasets.items()}
            state = _state_of(attributes, vectors["params"], vectors["momentum"])
            origin = _origin_of(attributes)
            if state.params_sha256 != attributes["params_sha256"]:
                raise CheckpointError(f"{path}: the parameters do not have the hash the file states")
    except CheckpointError:
        raise
    except Exception as error:  # whatever a forged file makes libhdf5 or NumPy raise
        raise CheckpointError(f"{path}: not a readable checkpoint: {type(error).__name__}: {error}") from error
    return Checkpoint(state, origin, layout)


def _proven_body(path: Path) -> bytes:
    """The file, after its length and SHA-256 were held to its header: libhdf5 sees nothing else."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) < USER_BLOCK or content[: len(MAGIC)] != MAGIC:
        raise BrokenCheckpointError(f"{path}: not a dptrain checkpoint: it does not begin with {MAGIC[:21].decode()!r}")
    header, body = content[:USER_BLOCK], memoryview(content)[USER_BLOCK:]
    if _header(body).ljust(USER_BLOCK, b"\0") != header:
        raise BrokenCheckpointError(
            f"{path}: {len(body):,} bytes after its header do not have the length and SHA-256 stated there: cut short "
            "or altered; use an earlier checkpoint of the run"
        )
    return content


def _state_of(attributes: dict[str, Any], parameters: Array, momentum: Array) -> TrainingState:
    accuracy = float(attributes["test_accuracy"])
    return TrainingState(
        parameters=parameters,
        momentum=momentum,
        step=int(attributes["step"]),
        samples_seen=int(attributes["samples_seen"]),
        epoch_loss=float(attributes["epoch_loss"]),
        epoch_correct=int(attributes["epoch_correct"]),
        epoch_samples=int(attributes["epoch_samples"]),
        test_accuracy=None if np.isnan(accuracy) else accuracy,
    )


def _origin_of(attributes: dict[str, Any]) -> Origin:
    if attributes["steps_per_epoch"] < 1:
        raise ValueError(f"steps_per_epoch is {attributes['steps_per_epoch']}, expected at least 1")
    return Origin(
        config=str(attributes["config"]),
        architecture=tuple(str(line) for line in attributes["architecture"]),
        input_shape=tuple(int(extent) for extent in attributes["input_shape"]),
        classes=tuple(str(name) for name in attributes["classes"]),
        data_name=str(attributes["data_name"]),
        manifest_sha256=str(attributes["manifest_sha256"]),
        steps_per_epoch=int(attributes["steps_per_epoch"]),
        environment=dict(json.loads(attributes["environment"])),
        model_output_sha256=str(attributes.get("model_output_sha256", "")),
        model_files={
            str(name): str(digest) for name, digest in json.loads(attributes.get("model_files", "{}")).items()
        },
    )


def _plain_datasets(file: Any, group: str) -> dict[str, Any]:
    """The datasets of a group, all of them plain float32 stored whole in this very file; ValueError otherwise.

    Soft, external and virtual ones could make libhdf5 open other files; sparse or compressed ones could take
    any amount of memory.
    """
    if not isinstance(file.get(group, getlink=True), h5py.HardLink):
        raise ValueError(f"{group} is missing or a link to elsewhere")
    datasets = {}
    for name in file[group]:
        if not isinstance(file[group].get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group}/{name} is a link to elsewhere")
        dataset = file[group][name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise ValueError(f"{group}/{name} is not stored in the file itself")
        if dataset.dtype != np.dtype("<f4") or dataset.id.get_storage_size() < dataset.nbytes:
            raise ValueError(f"{group}/{name} is {dataset.dtype} {dataset.shape}, expected float32 stored in full")
        datasets[name] = dataset
    return datasets


def _vector(datasets: dict[str, Any], layout: ParamLayout) -> Array:
    """The flat vector (P,) of a group's datasets."""
    found = {name: dataset.shape for name, dataset in datasets.items()}
    if found != layout.shapes:
        raise ValueError(f"datasets {found}, expected {layout.shapes}")
    vector = aligned_zeros(layout.size)
    for name, view in layout.views(vector).items():
        view[...] = datasets[name][()]
    return vector
