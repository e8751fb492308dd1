"""Reads older checkpoints: version 1, which dptrain 0.1.0 wrote with libhdf5, and the first files of version 2.

In version 1, after a header follows HDF5 with the groups params and momentum, and attributes for the rest. There is no
mean and deviation. Layers are lines, such as "conv1: Conv2d(8, (3, 3), algorithm='im2col') -> (8, 32, 32)", without a
`spec`.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Any

from dptrain.arrays.memory import Array
from dptrain.system import files
from dptrain.system.old_hdf5 import read_isolated
from dptrain.system.text import shown

MAGIC_1 = b"dptrain checkpoint v1\n\0\0"
HEADER_1 = struct.Struct("<24sQ32s")  # magic, bytes behind the header, their SHA-256
PROGRESS = ("step", "samples_seen", "epoch_loss", "epoch_correct", "epoch_samples", "test_accuracy")
ORIGIN = ("config", "architecture", "input_shape", "classes", "data_name", "manifest_sha256", "steps_per_epoch")
LAYER = re.compile(r"(\w+): (\w+)\((.*)\) -> (\(.*\))")  # name, type, arguments, output shape
ALGORITHM = re.compile(r"(?:, )?algorithm='(\w+)'$")
TYPES = ("Conv2d", "Flatten", "Linear", "MaxPool2d", "ReLU")  # their arguments are still written in the same way


def header_1(body: bytes | memoryview) -> bytes:
    """The header of a file of version 1, without the zeros at its end."""
    return HEADER_1.pack(MAGIC_1, len(body), hashlib.sha256(body).digest())


def read_version_1(content: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The index and the tensors, by "vector/tensor", of a file of version 1; ValueError unless it is one."""
    attributes, datasets = read_isolated(content)
    names = attributes.get("parameters")
    names = names if isinstance(names, list) else []
    expected = {f"{vector}/{name}": "<f4" for vector in ("params", "momentum") for name in names}
    found = {path: dataset.dtype.str for path, dataset in datasets.items()}
    if found != expected or attributes.get("version") != 1:
        raise ValueError(f"it holds {shown(found, 300)}, expected {shown(expected, 300)} and version 1")
    state = {name: attributes.get(name) for name in PROGRESS}
    if str(state["test_accuracy"]) == "nan":  # not evaluated
        state["test_accuracy"] = None
    environment = files.parse_json(str(attributes.get("environment")))
    index = {
        "format": attributes.get("format"),
        "version": 2,
        "writer": "dptrain 0.1.0",
        "state": state,
        "origin": {"environment": environment, **{name: attributes.get(name) for name in ORIGIN}},
        "params_sha256": attributes.get("params_sha256"),
        "vectors": {},
    }
    return index, {re.sub("^params/", "parameters/", path): datasets[path] for path in expected}


def layer_lines(lines: Sequence[str]) -> list[str]:
    """Lines of layers, without the parts that may differ between checkpoints of the same network.

    These are the algorithm, and the arguments of user-defined layers, which were written in another way.
    """

    def line(part: re.Match[str]) -> str:
        arguments = ALGORITHM.sub("", part[3]) if part[2] in TYPES else "..."
        return f"{part[1]}: {part[2]}({arguments}) -> {part[4]}"

    return [LAYER.sub(line, one) for one in lines]


def rename_params(index: Any) -> Any:
    """The index of version 2, in which the first files call the vector "parameters" "params"."""
    if isinstance(index, dict) and isinstance(vectors := index.get("vectors"), dict) and "params" in vectors:
        index["vectors"] = {"parameters": vectors.pop("params"), **vectors}
    return index


def algorithms(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """The tuning that lines of layers hold: {"conv1": {"algorithm": "im2col"}}."""
    found = [(part[1], ALGORITHM.search(part[3])) for line in lines if (part := LAYER.fullmatch(line))]
    return {name: {"algorithm": algorithm[1]} for name, algorithm in found if algorithm}
