"""Converts checkpoints of earlier formats to the index and tensors of the present one.

Version 1 was written by libhdf5: a header, then HDF5 with the groups params and momentum, and attributes for the rest.
It has no mean and deviation. The index of the first files of version 2 has the same two vectors. Both describe layers
by lines without a `spec`, such as "conv1: Conv2d(8, (3, 3), algorithm='im2col') -> (8, 32, 32)".
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from dptrain.arrays.memory import Array
from dptrain.system import files
from dptrain.system.old_hdf5 import read_isolated
from dptrain.system.text import shown

Tensors = Mapping[str, Mapping[str, Array]]  # by vector and name, float32 in natural shapes

MAGIC_1 = b"dptrain checkpoint v1\n\0\0"
HEADER_1 = struct.Struct("<24sQ32s")  # magic, bytes behind the header, their SHA-256
PROGRESS = ("step", "samples_seen", "epoch_loss", "epoch_correct", "epoch_samples", "test_accuracy")
ORIGIN = ("config", "architecture", "input_shape", "classes", "data_name", "manifest_sha256", "steps_per_epoch")
EARLIER_NAMES = {"params": "parameters"}  # of vectors
LAYER = re.compile(r"(\w+): (\w+)\((.*)\) -> (\(.*\))")  # name, type, arguments, output shape
ALGORITHM = re.compile(r"(?:, )?algorithm='(\w+)'$")
TYPES = ("Conv2d", "Flatten", "Linear", "MaxPool2d", "ReLU")  # their arguments are still written in the same way


def header_1(body: bytes | memoryview) -> bytes:
    """The header of a file of version 1, without the zeros at its end."""
    return HEADER_1.pack(MAGIC_1, len(body), hashlib.sha256(body).digest())


def read_version_1(content: bytes) -> tuple[dict[str, Any], Tensors]:
    """Index and tensors of a file of version 1; ValueError unless it is one."""
    attributes, datasets = read_isolated(content)
    found = attributes.get("format"), attributes.get("version")
    if found != ("dptrain-checkpoint", 1):
        raise ValueError(f"format and version are {shown(found, 200)}, expected dptrain-checkpoint and 1")
    names = attributes.get("parameters")
    names = names if isinstance(names, list) else []
    expected = [f"{vector}/{name}" for vector in ("params", "momentum") for name in names]
    if sorted(expected) != sorted(datasets):
        raise ValueError(f"it holds {shown(sorted(datasets), 200)}, expected {shown(expected, 200)}")
    for path, dataset in datasets.items():
        if dataset.dtype != "<f4":
            raise ValueError(f"{shown(path, 80)} is {dataset.dtype}, expected float32")
    accuracy = attributes.get("test_accuracy")
    if isinstance(accuracy, float) and math.isnan(accuracy):
        attributes["test_accuracy"] = None
    environment = files.parse_json(str(attributes.get("environment")))
    index = {
        "format": "dptrain-checkpoint",
        "version": 2,
        "writer": "dptrain 0.1.0",
        "state": {name: attributes[name] for name in PROGRESS if name in attributes},
        "origin": {"environment": environment, **{name: attributes[name] for name in ORIGIN if name in attributes}},
        "params_sha256": attributes.get("params_sha256"),
        "vectors": {},
    }
    return index, {vector: {name: datasets[f"{vector}/{name}"] for name in names} for vector in ("params", "momentum")}


def layer_lines(lines: Sequence[str]) -> list[str]:
    """Lines of layers, without the parts that may differ between checkpoints of the same network.

    These are the algorithm, and the arguments of user-defined layers, which were written in another way.
    """
    found = []
    for line in lines:
        if part := LAYER.fullmatch(line):
            arguments = ALGORITHM.sub("", part[3]) if part[2] in TYPES else "..."
            line = f"{part[1]}: {part[2]}({arguments}) -> {part[4]}"
        found.append(line)
    return found


def algorithms(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """The tuning that lines of layers hold: {"conv1": {"algorithm": "im2col"}}."""
    found = [(part[1], ALGORITHM.search(part[3])) for line in lines if (part := LAYER.fullmatch(line))]
    return {name: {"algorithm": algorithm[1]} for name, algorithm in found if algorithm}
