"""safetensors: the state_dict of the PyTorch module that `dptrain.export.pytorch` writes, and metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np

from dptrain.checkpoint.format import Checkpoint
from dptrain.export.pytorch import source, state_dict
from dptrain.export.values import exported_tensors, metadata
from dptrain.nn.network import Network
from dptrain.system.extras import from_extra

LENGTH = struct.Struct("<Q")


def content(checkpoint: Checkpoint, network: Callable[[], Network]) -> bytes:
    """The bytes of the file; UsageError names a layer that PyTorch does not have."""
    package = from_extra("safetensors.numpy", "an export as .safetensors")
    layers = network()
    source(checkpoint, layers)  # fails for a network that PyTorch cannot load
    arrays = state_dict(layers, exported_tensors(checkpoint), checkpoint.state.step)
    aligned = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return with_sorted_header(package.save(aligned, metadata={"format": "pt", **metadata(checkpoint)}))


def with_sorted_header(saved: bytes) -> bytes:
    """The same file with its metadata in order: the package writes it in a random one, and equal files are useful.

    A file is the length of the header in 8 bytes, the header, JSON that is padded with spaces to 8 bytes, the tensors.
    """
    (length,) = LENGTH.unpack_from(saved)
    end = LENGTH.size + length
    header = json.loads(saved[LENGTH.size : end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH.size)
    return LENGTH.pack(len(text)) + text + saved[end:]
