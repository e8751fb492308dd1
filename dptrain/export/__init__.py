"""Files with the values of a checkpoint for other programs. Each format is one file here, and one line below.

Read in this order: values, npz, small_checkpoint, pytorch, safetensors, onnx.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.errors import UsageError
from dptrain.system.outputs import write_output
from dptrain.system.text import shown

if TYPE_CHECKING:
    from dptrain.checkpoint.format import Checkpoint
    from dptrain.nn.network import Network

# By the suffix of the file: the module, whose `content(checkpoint, rebuild)` returns the bytes of the file;
# `rebuild()` returns the network.
FORMATS = {
    ".onnx": "dptrain.export.onnx",
    ".safetensors": "dptrain.export.safetensors",
    ".npz": "dptrain.export.npz",
    ".h5": "dptrain.export.small_checkpoint",
}


def check_suffix(path: Path) -> Path:
    """The path; UsageError for a suffix that is no format."""
    if path.suffix not in FORMATS:
        raise UsageError(f"found {shown(repr(str(path)), 200)}, expected a file that ends with {', '.join(FORMATS)}")
    return path


def write(path: Path, checkpoint: Checkpoint, rebuild: Callable[[], Network]) -> int:
    """Write the file of a format; returns its bytes. UsageError if that fails."""
    content: bytes = importlib.import_module(FORMATS[path.suffix]).content(checkpoint, rebuild)
    write_output(path, content)
    return len(content)
